"""Compares all storage kinds for one run: bytes, a metric on the validation split, and speed.

The record `quantized_kinds.json` holds what the page and the table show.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax

from bigmodel_jax.compress.calibrate import by_gptq, by_largest
from bigmodel_jax.compress.quantise import check, pack, quantised, stored_bytes
from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import files, formats, params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.inference.widen import widened
from bigmodel_jax.models.quantize import Kind, QuantizeConfig
from bigmodel_jax.training import run_folder
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.set_evaluations import validation

RECORD = "quantized_kinds.json"
TOKENIZER = "tokenizer.json"  # the tokenizer's file in a run's folder
METRICS = ("bits_per_byte", "accuracy", "loss")  # the first of these that the evaluation computes is compared
TOKENS = 32  # tokens generated to measure the speed
# The number of timed generations, of which the fastest counts.
ROUNDS = 3


class Variant(NamedTuple):
    """One row; asked: how weights are stored; find: computes nodes that are not rounded to the
    nearest."""

    name: str
    asked: QuantizeConfig
    find: Callable | None = None


def variants(given: QuantizeConfig, has_layers: bool) -> list[Variant]:
    """All kinds with the given other settings, both rounded to the nearest level and by GPTQ."""
    asked = {kind: dataclasses.replace(given, kind=kind) for kind in get_args(Kind)}
    # Static products need input scales from calibration rows, so rounding alone cannot make them.
    static = asked.pop("int8_static")
    found = [Variant("float32", QuantizeConfig()), *(Variant(*one) for one in asked.items())]
    if not has_layers:
        return found
    return [*found, Variant("int8_static", static, by_largest)] + [
        Variant(f"{kind}, GPTQ", asked[kind], by_gptq) for kind in ("nf4", "int4")
    ]


def compare(
    config: Config,
    run_dir: Path,
    given: QuantizeConfig,
    *,
    calibration: int,
    rows: int,
    which: str,
    bar: Callable,
    beside: Sequence[Path] = (),
) -> dict[str, Any]:
    """The record of the comparison.

    - calibration: number of rows for GPTQ; rows: number of validation rows, from the first
    - bar: as in `by_gptq`
    - beside: further runs, such as a distilled or pruned one, each of which is another row

    Raises ValueError if a further run uses other tokens.
    """
    check(config, run_dir, given)
    others = [another(config, run_dir, folder) for folder in beside]
    mesh = sharding.make_mesh(config.parallel)
    weights, step = load_weights(config, run_dir, mesh, which)
    size = config.eval.batch_size or config.train.batch_size
    batches = list(itertools.islice(validation(config, mesh, run_dir, resumes=True), -(-rows // size)))
    every = variants(given, config.make_model().parts is not None)
    before = 4 * params.count(config.make_model().spec)
    found = []

    def add(name: str, new: Config, stored: params.Tree) -> str:
        scalars, size_now = evaluate(new, make_eval_step(new, mesh), stored, batches), stored_bytes(new)
        metric = next(name for name in METRICS if f"eval/{name}" in scalars)
        row = {"name": name, "bytes": size_now, "share": size_now / before, "value": scalars[f"eval/{metric}"]}
        found.append(row | speeds(new, stored))
        return metric

    for variant in bar(every, len(every)):
        # The first variant is the run as it is, with which the others are compared.
        new = quantised(config, variant.asked) if variant.asked.kind != "none" else config
        # Calibrated kinds find their nodes on training rows. The others are rounded.
        nodes = variant.find(config, weights, variant.asked, calibration, lambda x, _: x) if variant.find else {}
        metric = add(variant.name, new, pack(new, weights, mesh, nodes))
    for folder, new in zip(beside, others, strict=True):
        add(folder.resolve().name, new, load_weights(new, folder, mesh)[0])
    return formats.stamp() | {
        "run": str(run_dir),
        "step": step,
        "metric": metric,
        "eval_rows": len(batches) * size,
        "calibration_rows": calibration,
        "device": jax.devices()[0].device_kind,
        "rows": found,
    }


def another(config: Config, run_dir: Path, folder: Path) -> Config:
    """The config of another run's model with this run's objective and data.

    Raises ValueError if its tokens or input shapes differ.
    """
    other = run_folder.load(folder)
    texts = [(one / TOKENIZER).read_bytes() if (one / TOKENIZER).is_file() else b"" for one in (run_dir, folder)]
    if texts[0] != texts[1] or other.model.inputs() != config.model.inputs():
        raise ValueError(f"--beside = {str(folder)!r}: this run reads other tokens or shapes than {run_dir}")
    return dataclasses.replace(
        other, objective=config.objective, data=config.data, eval=config.eval, parallel=config.parallel
    )


def speeds(config: Config, weights: params.Tree) -> dict[str, float]:
    """Tokens/s of one greedy text, {"wide", "stored"}.

    The result is empty for a model that does not generate.

    wide: a CPU makes quantized weights dense once. stored: they stay quantized.
    """
    # An encoder-decoder would need a text to encode, so its speed is not measured.
    if config.make_model().make_cache is None or config.make_model().decoder_start is not None:
        return {}
    model, compute = config.make_model(), cast(weights, config.precision.compute)
    ways = {"wide": widened(compute)} | ({"stored": compute} if config.quantize.kind != "none" else {})
    sample = SampleConfig(max_tokens=TOKENS, temperature=0.0, widen="never")
    return {name: _speed(model, tree, sample) for name, tree in ways.items()}


def _speed(model, weights, sample: SampleConfig) -> float:
    best = 0.0
    for _ in range(1 + ROUNDS):  # the first round compiles
        began = time.perf_counter()
        rows = generate(model, weights, [[1, 2, 3, 4]], sample, stop=())
        best = max(best, len(rows[0]) / (time.perf_counter() - began))
    return best


def write(record: dict[str, Any], folder: Path) -> None:
    """Writes the record to the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / RECORD, json.dumps(record, indent=1) + "\n")


def table(record: dict[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """(heads, rows) of the table as texts. Metric values stand beside their difference from
    float32."""
    first = record["rows"][0]["value"]
    heads = ["stored as", "MB", "of float32", record["metric"].replace("_", " "), "difference"]
    speed = any("wide" in row for row in record["rows"])
    rows = []
    for row in record["rows"]:
        line = [row["name"], f"{row['bytes'] / 1e6:,.1f}", f"{row['share']:.4f}", f"{row['value']:.5f}"]
        line.append(f"{row['value'] - first:+.5f}")
        if speed:
            line += [f"{row[way]:,.1f}" if way in row else "" for way in ("wide", "stored")]
        rows.append(line)
    return [*heads, "tokens/s", "tokens/s, as stored"] if speed else heads, rows
