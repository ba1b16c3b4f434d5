"""The verb `quantize`, which makes a trained model smaller."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.core.options import Unnamed
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import RUN, STEP, Verb, local, place, run_dir_of, split


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Options of `quantize`, beside the fields of the run's config."""

    config: Unnamed
    kind: Literal["int8", "int4", "nf4", "float8", "int8_dynamic", "int8_static"] = "int8"  # type of matrices
    method: Literal["round", "gptq"] = "round"  # how values are rounded; gptq corrects for earlier errors
    block: CountOrZero = 0  # values that share one scale; 0: 256 for int8, 32 for int4, otherwise 64
    tables: Literal["int8", "bfloat16", "float32"] = "int8"  # type of embeddings and head
    keep: str = ""  # a pattern; parameters whose whole path matches it are not quantised
    rows: Count = 32  # rows of the training split for GPTQ and int8_static
    compare: tyro.conf.FlagConversionOff[bool] = False  # compare all kinds and write no run
    eval_rows: Count = 64  # rows of the validation split for --compare
    beside: str = ""  # other runs, RUN or RUN,RUN, as rows of --compare
    step: str = ""  # the checkpoint: a step that is kept, or best; empty: the newest


def quantize(args: Sequence[str]) -> None:
    """Runs the verb `quantize`: writes a quantised run, or a page that compares all kinds."""
    targets, options = split(args)
    if len(targets) not in (1, 2):
        raise ValueError(
            f"quantize: expected a run and, if you like, a folder, got {targets}; launch.py quantize --help shows how"
        )
    from bigmodel_jax import config as configs
    from bigmodel_jax.config_checks import check_paths
    from bigmodel_jax.training import run_folder

    target = place("quantize", targets[0])
    given = configs.parse(Quantize(run_folder.load(target)), options, prog=f"launch.py quantize {target}")
    check_paths(given.config)
    if given.beside and not given.compare:
        raise ValueError(f"--beside = {given.beside!r} needs --compare True, to whose table it adds rows")
    run_dir, name = run_dir_of(target), "kinds" if given.compare else given.kind
    folder = local("quantize", targets[1]) if len(targets) == 2 else run_dir.with_name(f"{run_dir.name}_{name}")
    runtime.keep_programs()
    (_compared if given.compare else _made)(given, run_dir, folder)


def _made(given: Quantize, run_dir: Path, folder: Path) -> None:
    from bigmodel_jax.compress.calibrate import by_gptq, by_largest
    from bigmodel_jax.compress.quantise import by_storage, quantise_run

    static, products = given.kind == "int8_static", given.kind in ("int8_dynamic", "int8_static")
    if products and given.method == "gptq":
        raise ValueError(f"--method = 'gptq' with --kind = {given.kind!r}; it must be round")

    def find(config, weights):
        by = by_largest if static else by_gptq
        return by(config, weights, _asked(given), given.rows, _bar("Layers"))

    how = {"which": given.step, "find": find if static or given.method == "gptq" else None, "method": given.method}
    made = quantise_run(given.config, run_dir, folder, _asked(given), **how)
    rows = [[name, f"{count:,}", f"{size:,}"] for name, (count, size) in by_storage(made.config).items()]
    _print(f"{folder}: {made.after / 1e6:,.1f} MB, {made.after / made.before:.4f} of float32", HEADS, rows)


def _compared(given: Quantize, run_dir: Path, folder: Path) -> None:
    from bigmodel_jax.compress.compare import compare, table, write
    from bigmodel_jax.report.quantized_page import build_quantized_page

    beside = [run_dir_of(place("quantize", one)) for one in given.beside.split(",") if one]
    sizes = {"beside": beside, "calibration": given.rows, "rows": given.eval_rows, "which": given.step}
    record = compare(given.config, run_dir, _asked(given), **sizes, bar=_bar("Kinds"))
    write(record, folder)
    _print(f"{run_dir} at step {record['step']:,}", *table(record))
    print(build_quantized_page(record, table(record), folder / "quantize.html"))


HEADS = ("stored as", "parameters", "bytes")


def _print(title: str, heads: Sequence[str], rows: list[list[str]]) -> None:
    found = Table(title=title, title_justify="left")
    for number, name in enumerate(heads):
        found.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        found.add_row(*row)
    make_console(soft_wrap=True).print(found)


def _asked(given: Quantize):
    from bigmodel_jax.models.quantize import QuantizeConfig

    return QuantizeConfig(given.kind, given.block, given.tables, given.keep)


def _bar(what: str):
    """Wraps an iterable in a progress bar on the terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def run(iterable, total: int):
        with Progress(*columns, console=make_console(stderr=True), transient=True) as bar:
            yield from bar.track(iterable, total, description=what)

    return run


VERBS = {
    "quantize": Verb(
        quantize,
        "quantize RUN [FOLDER] [--kind int8] [--FIELD VALUE ...]",
        "store a run's weights in 8 or 4 bits, as a run",
        f"RUN           {RUN}\n"
        "FOLDER        a new folder; without it: RUN_KIND\n"
        "--kind        int8, int4, nf4 or float8: the numbers that matrices are stored in;\n"
        "              int8_dynamic, int8_static: int8 products of int8 inputs, whose scales\n"
        "              are each row's own, or found on --rows rows of the training split\n"
        "--method      round: to the nearest value; gptq: each column corrects the errors\n"
        "              of earlier ones, measured on --rows rows of the training split\n"
        "--block       values that share one scale; without it: 256 for int8, 32 for int4,\n"
        "              otherwise 64\n"
        "--tables      int8, bfloat16 or float32: the type of embeddings and head\n"
        "--keep        a pattern; parameters whose whole path matches it are not quantised\n"
        "--compare True  writes no run but compares all kinds: bytes, a metric on\n"
        "              --eval_rows rows, tokens/s; FOLDER gets quantize.html\n"
        "--beside RUN,RUN  other runs as rows of --compare: a distilled or a pruned one\n"
        f"{STEP}\n"
        "--FIELD       any field of the run's config, such as --data.seq_len\n\n"
        "FOLDER becomes a run that eval, generate, export and plan read. It cannot train.",
        (
            "quantize runs/lm_tiny",
            "quantize runs/smollm2 runs/small --kind int4 --method gptq",
            "quantize runs/lm_tiny --compare True",
        ),
    ),
}
