"""The verbs that make, continue and show runs: train, eval, generate, report."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.cluster import join, peers
from bigmodel_jax.core import mirror
from bigmodel_jax.core.options import Unnamed, asks_for_help, parse, parse_known
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.ranges import Count, CountOrZero, Seed
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.verbs.base import (
    ADAPTER,
    CONFIG,
    RUN,
    STEP,
    OfJob,
    Verb,
    local,
    one_target,
    parse_job,
    place,
    run_dir_of,
    split,
)


@dataclasses.dataclass(frozen=True)
class Train(OfJob):
    """Options of `train`, beside the fields of the config."""

    accept: str = ""  # data, code or data,code: what may have changed since the run last started
    json: bool = False  # print the last evaluation as one JSON object on the last line


def train(args: Sequence[str]) -> None:
    """Runs the verb `train`: trains a new run, or resumes one."""
    began = time.time()
    in_job = join.expected(parse_known(Train(), args, prog="launch.py train CONFIG")[0].cluster)
    with Stages(make_console(quiet=in_job or asks_for_help(args))) as stages:
        stages.begin("Importing packages")
        given, run_dir, target = parse_job(Train(), "train", args)
        runtime.keep_programs()
        from bigmodel_jax.report.writers import read_metrics
        from bigmodel_jax.training import provenance, run

        accepted = provenance.kinds(given.accept)
        say = None if in_job else stages
        run.train(given.config, run_dir, say, began=began, source=target, accept=accepted)
    if given.json and peers.speaks():
        evaluations = (record for record in reversed(read_metrics(run_dir)) if _is_evaluation(record))
        print(json.dumps(next(evaluations, {})))


def _is_evaluation(record: dict) -> bool:
    return any(name.startswith("eval/") for name in record)


@dataclasses.dataclass(frozen=True)
class Evaluate(OfJob):
    """Options of `eval`, beside the fields of the run's config."""

    step: str = ""  # the checkpoint: a step that is kept, or best; empty: the newest
    adapter: str = ""  # the names of adapters, with commas between; empty: all of the run's
    json: bool = False  # print one JSON object instead of a table
    harness: tuple[str, ...] = ()  # tasks of lm-eval to evaluate instead: names, YAML files, or folders of them
    fewshot: CountOrZero | None = None  # examples before each question of --harness; None = the task's own number
    limit: Count | None = None  # evaluate this many first questions of each task of --harness; None = all
    chat: tyro.conf.FlagConversionOff[bool] = False  # put the questions of --harness into the run's chat template


def evaluate(args: Sequence[str]) -> None:
    """Runs the verb `eval`: prints metrics of a checkpoint, or results of lm-eval's tasks."""
    with _status("Evaluating", args):
        given, run_dir, _ = parse_job(Evaluate(), "eval", args)
        runtime.keep_programs()
        if given.harness:
            return _harness(given, run_dir)
        _refuse_options_of_harness(given)
        from bigmodel_jax.report.writers import plain
        from bigmodel_jax.training.evaluate_saved import evaluate_run

        step, scalars = evaluate_run(given.config, run_dir, given.step, given.adapter)
    if given.json:
        if peers.speaks():
            print(json.dumps({"step": step} | {name: plain(value) for name, value in scalars.items()}))
        return
    table = Table(title=f"{mirror.address(run_dir)} at step {step:,}", title_justify="left", show_header=False)
    for name, value in scalars.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.5g}")
    make_console(quiet=not peers.speaks()).print(table)


def _refuse_options_of_harness(given: Evaluate) -> None:
    for name in ("fewshot", "limit", "chat"):
        if (value := getattr(given, name)) not in (None, False):
            raise ValueError(f"--{name} = {value} is for tasks of lm-eval; name them by --harness TASK ...")


def _harness(given: Evaluate, run_dir: Path) -> None:
    from bigmodel_jax.harness.evaluate_tasks import Asked, evaluate_tasks
    from bigmodel_jax.report import harness_results

    asked = Asked(given.harness, given.fewshot, given.limit, given.chat)
    found = evaluate_tasks(given.config, run_dir, asked, given.step, given.adapter)
    if given.json:
        if peers.speaks():
            print(json.dumps({"step": found["step"], "results": found.get("results", {})}, default=str))
        return
    title = f"{mirror.address(run_dir)} at step {found['step']:,}, by lm-eval"
    table = Table(*harness_results.HEADS, title=title, title_justify="left")
    for row in harness_results.rows(found) if peers.speaks() else ():
        table.add_row(*harness_results.written(row))
    make_console(quiet=not peers.speaks()).print(table)


def generate(args: Sequence[str]) -> None:
    """Runs the verb `generate`: prints continuations of a prompt."""
    target, options = one_target("generate", args, "RUN")
    with _status("Generating", args):
        texts = _generated(target, options)
    for text in texts:
        make_console().print(text, markup=False, highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Generate:
    """Options of `generate`, beside those of sampling."""

    sample: Unnamed
    seed: Seed = 0  # seed of sampling; another seed gives another text
    num_samples: int = 1  # the number of continuations
    step: str = ""  # the checkpoint: a step, or best; empty: the newest
    adapter: str = ""  # the names of adapters, with commas between; empty: all of the run's
    chat: tyro.conf.FlagConversionOff[bool] = False  # the prompt is a user's message in the chat template
    image: str = ""  # an image file that the prompt is about


def _generated(target: Path, options: list[str]) -> list[str]:
    from bigmodel_jax.training import run_folder

    config, run_dir = run_folder.load(target), run_dir_of(target)
    given = parse(Generate(config.eval.sample), options, prog=f"launch.py generate {target}")
    runtime.keep_programs()
    from bigmodel_jax.training.saved import generate_from_run

    how = {"chat": given.chat, "which": given.step, "adapter": given.adapter, "image": given.image}
    return generate_from_run(config, run_dir, given.sample, given.seed, given.num_samples, **how)


def _status(text: str, args: Sequence[str]):
    """A status line on a terminal while the verb works.

    It disappears at the end and never enters a pipe.
    """
    return make_console(stderr=True, quiet=asks_for_help(args)).status(f"{text} ...")


@dataclasses.dataclass(frozen=True)
class Report:
    """Options of `report`."""

    output: str = ""  # the page to write; empty: report.html in the run's folder, or comparison.html here


def report(args: Sequence[str]) -> None:
    """Runs the verb `report`: writes the page of a run, or a page that compares several."""
    targets, options = split(args)
    output = parse(Report(), options, prog="launch.py report RUN ...").output
    check_local("report: --output", output)
    from bigmodel_jax.report.page import build_report

    folders = [run_dir_of(place("report", t)) for t in targets]
    for target, folder in zip(targets, folders, strict=True):
        if not folder.is_dir():
            tried = "" if str(folder) == target else f", nor is {str(folder)!r}"
            near = nearest(target, [str(p.parent) for p in Path("runs").glob("*/metrics.jsonl")])
            raise ValueError(f"report: {target!r} is not a run's folder{tried}{near}")
    from bigmodel_jax.report import difference, scaling

    runs = not any((folder / scaling.RECORDS_FILE).is_file() for folder in folders)
    said = difference.first_differences(*folders) if len(folders) == 2 and runs else []
    default = folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html")
    page = build_report(folders, local("report: --output", output) if output else default, said)
    mirror.push(folders[0], only=("report.html", "plots"))
    print("\n".join([*said, mirror.address(page)]))


VERBS = {
    "train": Verb(
        train,
        "train CONFIG [--run_dir PATH] [--FIELD VALUE ...]",
        "train, or resume what the run's folder holds",
        f"CONFIG        {CONFIG}\n"
        "--run_dir     the run's folder; without it: runs/<name of the config file>\n"
        "--FIELD       any field of the config by its dotted name\n"
        "--accept      data, code or data,code: what may have changed since the run last\n"
        "              started\n"
        "--json        prints the last evaluation as one JSON object on the last line\n"
        "--cluster.X   one process of several: coordinator, num_processes, process_id;\n"
        "              found automatically with SLURM, Open MPI, JobSet and on TPU hosts\n\n"
        "The same command resumes a run, or says that it is complete. A larger\n"
        "--train.steps trains further. The folder gets config.json, environment.json,\n"
        "metrics.jsonl, log.txt, goodput.jsonl, steps.hex, report.html, tensorboard/,\n"
        "checkpoints/, plots/ and samples/.\n\n"
        "Every field and its default: python launch.py train CONFIG --help",
        (
            "train configs/lm_tiny.py",
            "train configs/lm_tiny.py --train.steps 200 --run_dir runs/short",
            "train runs/lm_tiny --train.steps 4000",
        ),
    ),
    "eval": Verb(
        evaluate,
        "eval RUN [--step N] [--adapter NAME] [--FIELD VALUE ...]",
        "evaluate a run's newest checkpoint",
        f"RUN           {RUN}\n"
        f"{STEP}\n"
        f"{ADAPTER}\n"
        "--FIELD       any field of the run's config, such as --eval.batch_size\n"
        "--json        prints one JSON object instead of a table\n"
        "--harness     evaluates tasks of lm-eval: names, YAML files, or folders of them\n"
        "  --fewshot   examples before each question; without it: the task's own number\n"
        "  --limit     evaluates only the first N questions of each task\n"
        "  --chat True puts each question into the model's chat template\n\n"
        "Evaluates on the validation split and the sets in eval.sets, or on the tasks.",
        (
            "eval runs/lm_tiny",
            "eval runs/lm_tiny --step best --eval.batch_size 8",
            "eval runs/lm_tiny --harness my_tasks lambada_openai --limit 100",
        ),
    ),
    "generate": Verb(
        generate,
        "generate RUN --prompt TEXT [options]",
        "continue a text with a run's newest checkpoint",
        f"RUN             {RUN}\n"
        "--prompt        the text to continue\n"
        "--max_tokens    the greatest length of a continuation\n"
        "--temperature   0 always takes the likeliest token\n"
        "--top_k         only the k likeliest tokens; 0 means all\n"
        "--top_p         only the likeliest tokens that together have probability p\n"
        "--num_samples   the number of continuations\n"
        "--cache         int8: 8-bit keys and values, with a scale per head and position\n"
        "--widen         never: a CPU, too, reads quantised weights as they are stored\n"
        "--chat True     the prompt is a user's message, in the model's chat template\n"
        "--image FILE    the image that the prompt is about, for a model that reads images\n"
        "--seed          another seed gives another text\n"
        "--step          the checkpoint: a step that is kept, or best; without it: the newest\n"
        "--adapter       the adapters to use: NAME or NAME,NAME; without it: all\n\n"
        "An option that is left out has its value from the run's config (eval.sample).",
        (
            'generate runs/lm_tiny --prompt "My fellow Americans,"',
            'generate runs/lm_tiny --prompt "The state" --temperature 0.7 --num_samples 3',
        ),
    ),
    "report": Verb(
        report,
        "report RUN ... [--output PATH]",
        "write one run's page, or compare several runs",
        f"RUN           {RUN}\n"
        "--output      the page; without it: RUN/report.html, or comparison.html here\n\n"
        "The page is one HTML file. For several runs it overlays curves and diffs configs.\n"
        "For two runs it also has the first step, batch and saved array that differ.",
        ("report runs/lm_tiny", "report runs/lm_tiny runs/short --output comparison.html"),
    ),
}
