"""Find where two runs diverge.

Three places are found: the first step with another loss, the first step with another batch, and the
first checkpoint with another array.
"""

from pathlib import Path

import numpy as np

from bigmodel_jax.checkpoint import arrays, manifest, store
from bigmodel_jax.checkpoint.manifest import Damaged
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import mirror
from bigmodel_jax.report import step_trace
from bigmodel_jax.report.writers import read_metrics


def first_differences(a: Path, b: Path) -> list[str]:
    """Three sentences on two runs' folders: on losses, batches and checkpoints."""
    return [*_steps(a, b), _saves(a, b)]


def _steps(a: Path, b: Path) -> list[str]:
    known_a, batches_a, losses_a = step_trace.read(a)
    known_b, batches_b, losses_b = step_trace.read(b)
    n = min(len(known_a), len(known_b))
    # Only steps that both runs have recorded are compared.
    both = known_a[:n] & known_b[:n]
    if not both.any():
        return [_records(a, b), f"Batches: no step of which both folders keep a digest ({step_trace.FILE})."]
    # Compare bits, so that equal NaNs count as equal.
    bits_a, bits_b = (x[:n].view(np.uint32) for x in (losses_a, losses_b))
    losses, batches = (both & (x != y) for x, y in ((bits_a, bits_b), (batches_a[:n], batches_b[:n])))
    missing = f" ({n - both.sum():,} other steps are not known)" if both.sum() < n else ""
    same = f"the same in all {both.sum():,} steps that both have taken{missing}."
    said = [f"Loss: {same}", f"Batches: {same}"]
    if losses.any():
        at = int(np.argmax(losses))
        said[0] = f"Loss: differs first at step {at + 1:,}: {losses_a[at]:.8g} and {losses_b[at]:.8g}{missing}."
    if batches.any():
        at = int(np.argmax(batches))
        digests = f"digests {batches_a[at]:08x} and {batches_b[at]:08x}"
        said[1] = f"Batches: the first that differs is that of step {at + 1:,} ({digests}){missing}."
    return said


def _records(a: Path, b: Path) -> str:
    """Compare only the logged losses. This serves runs without a record of every step."""
    first, second = ({r["step"]: r["loss"] for r in read_metrics(run) if "loss" in r} for run in (a, b))
    both = sorted(first.keys() & second.keys())
    at = next((step for step in both if first[step] != second[step]), None)
    if at is None:
        return f"Loss: the same in all {len(both):,} steps that both have logged."
    return f"Loss: of the steps that both have logged, it differs first at step {at:,}: {first[at]} and {second[at]}."


def _saves(a: Path, b: Path) -> str:
    folders = [mirror.origin(Path(run) / "checkpoints") for run in (a, b)]
    found = [store.steps(store.open_store(folder, CheckpointConfig())) for folder in folders]
    common = sorted(set(found[0]) & set(found[1]))
    if not common:
        return "Saves: none is of the same step in both runs."
    for step in common:
        try:
            first, second = (_digests(folder / str(step)) for folder in folders)
        except Damaged as error:
            return f"Saves: one of step {step:,} cannot be read: {error}."
        if said := _leaves(first, second):
            return f"Saves: the save of step {step:,} is the first that differs, {said}."
    return f"Saves: the same in every leaf, at step{'s' * (len(common) > 1)} {', '.join(f'{s:,}' for s in common)}."


def _leaves(first: dict[str, tuple], second: dict[str, tuple]) -> str:
    """The first array in which two checkpoints differ; "" if none does."""
    names = list(dict.fromkeys((*first, *second)))
    wrong = [name for name in names if first.get(name) != second.get(name)]
    if not wrong:
        return ""
    name, count = wrong[0], f"{len(wrong):,} of {len(names):,} leaves differ"
    if name not in first or name not in second:
        return f"first in {name}, which one of them lacks ({count})"
    shapes = f", {first[name][0]} and {second[name][0]}" if first[name][0] != second[name][0] else ""
    return f"first in {name}{shapes} ({count})"


def _digests(folder: Path) -> dict[str, tuple[str, int]]:
    """{path: (dtype and shape, digest)} of one checkpoint's arrays. The arrays are not read."""
    leaves = manifest.read(folder)["leaves"]
    digests = arrays.read(folder, {"digest": np.zeros(len(leaves), np.uint32)})["digest"]
    return {path: (text, int(d)) for (path, text), d in zip(leaves.items(), digests, strict=True)}
