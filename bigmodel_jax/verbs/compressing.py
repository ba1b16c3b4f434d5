"""Verbs that make a trained model smaller: quantize."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.core.options import asks_for_help, parse
from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.verbs.base import RUN, STEP, Verb, local, place, run_dir_of, split


@dataclasses.dataclass(frozen=True)
class Quantize:
    kind: Literal["int8", "int4", "nf4", "float8"] = "int8"
    block: CountOrZero = 0  # values with one scale; 0: 64, of int4 32
    tables: Literal["int8", "bfloat16", "float32"] = "int8"  # of embeddings and the head
    keep: str = ""  # a pattern of whole paths of parameters that stay as they are
    step: str = ""  # which checkpoint: a step that is kept, or best; empty: the newest


def quantize(args: Sequence[str]) -> None:
    targets, options = split(args)
    if len(targets) not in (1, 2):
        raise ValueError(
            f"quantize: expected a run and, if you like, a folder, got {targets}; launch.py quantize --help shows how"
        )
    given = parse(Quantize(), options, prog="launch.py quantize RUN [FOLDER]")
    with Console(stderr=True, quiet=asks_for_help(args)).status("Quantising ..."):
        folder, made = _made(targets, given)
    from bigmodel_jax.compress.quantise import by_storage

    share = f"{made.after / made.before:.4f} of float32"
    table = Table(title=f"{folder}: {made.after / 1e6:,.1f} MB, {share}", title_justify="left")
    for name in ("stored as", "parameters", "bytes"):
        table.add_column(name, justify="left" if name == "stored as" else "right")
    for name, (count, size) in by_storage(made.config).items():
        table.add_row(name, f"{count:,}", f"{size:,}")
    Console().print(table)


def _made(targets: list[str], given: Quantize):
    from bigmodel_jax.models.quantize import QuantizeConfig
    from bigmodel_jax.training import run_folder

    target = place("quantize", targets[0])
    config, run_dir = run_folder.load(target), run_dir_of(target)
    folder = local("quantize", targets[1]) if len(targets) == 2 else default_folder(run_dir, given.kind)
    runtime.keep_programs()
    from bigmodel_jax.compress.quantise import quantise_run

    asked = QuantizeConfig(given.kind, given.block, given.tables, given.keep)
    return folder, quantise_run(config, run_dir, folder, asked, which=given.step)


def default_folder(run_dir: Path, kind: str) -> Path:
    return run_dir.with_name(f"{run_dir.name}_{kind}")


VERBS = {
    "quantize": Verb(
        quantize,
        "quantize RUN [FOLDER] [--kind int8|int4|nf4|float8]",
        "make a run of a run's weights in 8 or 4 bits",
        f"RUN           {RUN}\n"
        "FOLDER        a new folder; without it: RUN_KIND\n"
        "--kind        int8, int4, nf4 or float8: the numbers that matrices are stored in\n"
        "--block       values with one scale; without it 64, of int4 32\n"
        "--tables      int8, bfloat16 or float32: embeddings and the head\n"
        "--keep        a pattern of whole paths of parameters that stay as they are\n"
        f"{STEP}\n\n"
        "The folder is a run: eval, generate, export and plan read it; nothing of it trains.",
        ("quantize runs/lm_tiny", "quantize runs/smollm2 runs/small --kind int4 --tables bfloat16"),
    ),
}
