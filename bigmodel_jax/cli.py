"""The command line: parse, call one function, print its result."""

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from bigmodel_jax import runtime

# JAX and the rest of the package are imported inside the verbs: `launch.py` and a misspelt verb answer at once.


class Verb(NamedTuple):
    run: Callable[[Sequence[str]], None]
    usage: str
    summary: str
    details: str


def main(args: Sequence[str] | None = None) -> None:
    """Runs `launch.py VERB ...`. A user's mistake is one line on stderr and exit code 2."""
    if args is None:
        args = sys.argv[1:]
        if args[:1] == ["train"]:
            runtime.keep_memory()
    args = list(args)
    try:
        _dispatch(args)
    except (ValueError, OSError) as error:
        if os.environ.get("BIGMODEL_TRACEBACK"):
            traceback.print_exc()
        sys.exit(_fail(_text(error)))
    except Exception as error:
        from bigmodel_jax.training.loop import Interrupted

        if not isinstance(error, Interrupted):
            raise
        print(f"{error}; the same command resumes it", file=sys.stderr)
        # SIGTERM is how clusters ask for a clean end; Ctrl-C is the user's own.
        sys.exit(0 if error.signal_number == 15 else 130)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(text: str) -> int:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escape(text)}")
    return 2


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        overview()
        return
    name, rest = args[0], args[1:]
    if name not in VERBS:
        from bigmodel_jax.config import nearest

        raise ValueError(f"verb {name!r} is unknown{nearest(name, VERBS)}; there is: {', '.join(VERBS)}")
    if not rest or rest in (["-h"], ["--help"]):
        describe(name)
        if not rest:
            raise ValueError(f"{name}: what to {name} is missing; usage: launch.py {VERBS[name].usage}")
        return
    VERBS[name].run(rest)


def overview() -> None:
    console = Console()
    console.print("\n[bold]bigmodel_jax[/]: train, measure and use large models in JAX, from one launcher.\n")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 2))
    for verb in VERBS.values():
        table.add_row(f"[bold cyan]python launch.py {_escape(verb.usage)}[/]", verb.summary)
    console.print(table)
    console.print("\nStart here:  [bold]python launch.py train configs/lm_tiny.py[/]   (4 minutes on 2 CPU cores)")
    console.print("Any field of a config is an option: [bold]--optim.lr 1e-3 --model.num_layers 8 --train.steps 200[/]")
    console.print("Every field and its default: [bold]python launch.py train configs/lm_tiny.py --help[/]\n")


def describe(name: str) -> None:
    verb = VERBS[name]
    console = Console()
    console.print(f"\n[bold]python launch.py {_escape(verb.usage)}[/]\n\n{_escape(verb.details)}\n")


# ------------------------------------------------------------------------------------------------ arguments


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what stands before the first option, the rest)."""
    first = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def _one_target(verb: str, args: Sequence[str]) -> tuple[Path, list[str]]:
    targets, options = _split(args)
    if len(targets) != 1:
        raise ValueError(
            f"{verb}: expected one config or run folder, got {targets}; usage: launch.py {VERBS[verb].usage}"
        )
    return Path(targets[0]), options


def _parse_config(target: Path, options: list[str], verb: str):
    """(config, run folder): the run's own options beside every field of its config."""
    from bigmodel_jax import config as configs
    from bigmodel_jax import config_file

    loaded = config_file.load(target)

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        config: Annotated[configs.Config, tyro.conf.arg(name="")]
        run_dir: str = ""  # the run's folder; empty: runs/<name of the config file>

    parsed = configs.override(Arguments(loaded), options, prog=f"launch.py {verb} {target}")
    return parsed.config, Path(parsed.run_dir) if parsed.run_dir else _run_dir(target)


def _run_dir(target: Path) -> Path:
    if target.is_dir():
        return target
    return target.parent if target.name == "config.json" else Path("runs") / target.stem


# ------------------------------------------------------------------------------------------------ verbs


def train(args: Sequence[str]) -> None:
    target, options = _one_target("train", args)
    config, run_dir = _parse_config(target, options, "train")
    runtime.keep_programs()
    from bigmodel_jax.training import loop

    loop.train(config, run_dir)


def evaluate(args: Sequence[str]) -> None:
    target, options = _one_target("eval", args)
    config, run_dir = _parse_config(target, options, "eval")
    runtime.keep_programs()
    from bigmodel_jax.training.saved import evaluate_run

    step, scalars = evaluate_run(config, run_dir)
    table = Table(title=f"{run_dir} at step {step:,}", title_justify="left", show_header=False)
    for name, value in scalars.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.5g}")
    Console().print(table)


def generate(args: Sequence[str]) -> None:
    from bigmodel_jax import config as configs
    from bigmodel_jax import config_file

    target, options = _one_target("generate", args)
    config, run_dir = config_file.load(target), _run_dir(target)

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        sample: Annotated[configs.SampleConfig, tyro.conf.arg(name="")]
        seed: int = 0
        num_samples: int = 1

    parsed = configs.override(Arguments(config.eval.sample), options, prog=f"launch.py generate {target}")
    runtime.keep_programs()
    from bigmodel_jax.training.saved import generate_from_run

    for text in generate_from_run(config, run_dir, parsed.sample, parsed.seed, parsed.num_samples):
        Console().print(text, markup=False, highlight=False, soft_wrap=True)


def report(args: Sequence[str]) -> None:
    targets, options = _split(args)
    from bigmodel_jax.config import override
    from bigmodel_jax.report.page import build_report

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        output: str = ""  # the page to write; empty: report.html in the run's folder, or comparison.html here

    output = override(Arguments(), options, prog="launch.py report RUN ...").output
    folders = [_run_dir(Path(t)) for t in targets]
    default = folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html")
    print(build_report(folders, Path(output) if output else default))


def data(args: Sequence[str]) -> None:
    target, options = _one_target("data", args)
    config, _ = _parse_config(target, options, "data")
    from bigmodel_jax.data.inspect import show

    show(config.data)


VERBS = {
    "train": Verb(
        train,
        "train CONFIG [--run_dir PATH] [--FIELD VALUE ...]",
        "train, or resume what the run's folder holds",
        "CONFIG is a Python file with get_config(), a config.json, or a run's folder. Run again, it resumes, or says\n"
        "that the run is complete; --train.steps raised trains on. The run's folder gets config.json, environment.json,\n"
        "metrics.jsonl, tensorboard/, checkpoints/, plots/, samples/, log.txt and report.html.\n\n"
        "Every field and its default: python launch.py train CONFIG --help",
    ),
    "eval": Verb(
        evaluate,
        "eval RUN [--FIELD VALUE ...]",
        "evaluate a run's newest checkpoint on its validation split",
        "RUN is a run's folder, or the config file whose run lies in runs/<name>.",
    ),
    "generate": Verb(
        generate,
        "generate RUN --prompt TEXT [--max_tokens N] [--temperature T] [--top_k K] [--top_p P] [--seed S]",
        "continue a text with a run's newest checkpoint",
        "RUN is a run's folder, or the config file whose run lies in runs/<name>. --num_samples N gives N continuations.",
    ),
    "report": Verb(
        report,
        "report RUN [RUN ...] [--output PATH]",
        "one run's page, or several runs side by side",
        "One self-contained HTML file: curves overlaid, configs diffed, figures beside each other.",
    ),
    "data": Verb(
        data,
        "data CONFIG [--FIELD VALUE ...]",
        "show what a config feeds: counts, samples, tokens, padding",
        "Counts per split, sample records before and after each transform, token statistics, padding waste.",
    ),
}
