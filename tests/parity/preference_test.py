"""Preference and reward objectives against TRL: one batch's loss and gradients, and the losses of
training steps.

A loss to 1e-5 of the sum of its absolute terms, gradients to 1e-4 of the largest, 20 steps of
training to 1e-3.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import DataConfig
from bigmodel_jax.objectives import DPO, KTO, ORPO, RewardModel, SimPO
from bigmodel_jax.objectives.base import Objective
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.pretrained import folder
from reference import distance, fixture_folder, losses_of_steps, read, read_file

OBJECTIVES: dict[str, Objective] = {
    "dpo_sigmoid": DPO(),
    "dpo_hinge": DPO(form="hinge"),
    "dpo_ipo": DPO(form="ipo"),
    "dpo_sigmoid_norm": DPO(form="sigmoid_norm"),
    "dpo_robust": DPO(form="robust", label_smoothing=0.1),
    "smoothed": DPO(label_smoothing=0.2),
    "simpo": SimPO(),
    "orpo": ORPO(),
    "kto": KTO(unwanted_weight=1.5),
    "reward": RewardModel(),
    "reward_centered": RewardModel(center=0.3),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What TRL was given and what it computed; other: the weights of its reference."""

    family: Any
    cfg: Any
    model: Any
    folder: Any
    arrays: dict
    tree: Any
    other: Any

    def weights(self, name: str, file: str) -> Any:
        """Weights or gradients in a file of the folder; those of a reward model with its head."""
        found = read_file(self.family, self.cfg, self.folder / file)
        if name.startswith("reward"):
            head = dict(folder.open_file(self.folder / file))["score.weight"].read()
            found = {**found, "reward": {"kernel": jnp.asarray(head).T}, "head": self.tree["head"]}
        return found


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> Case:
    path = fixture_folder(
        "preference", request.config.getoption("--reference-python"), tmp_path_factory.mktemp("reference")
    )
    family, cfg = folder.read_config(path)
    tree = read(family, cfg, folder.open_weights(path))
    with np.load(path / "reference.npz") as arrays:
        found = dict(arrays)
    return Case(family, cfg, cfg.make(), path, found, tree, read_file(family, cfg, path / "other.safetensors"))


def texts(case: Case, name: str) -> list[tuple[np.ndarray, ...]]:
    """(ids, which places hold a token, which are of an answer), (B, T) each, of the first and the
    second texts of all rows."""
    get = lambda prefix: tuple(case.arrays[f"{name}/{prefix}{what}"] for what in ("ids", "held", "asked"))  # noqa: E731
    if f"{name}/chosen_ids" in case.arrays:
        return [get("chosen_"), get("rejected_")]
    if f"{name}/KL_ids" in case.arrays:
        return [get(""), get("KL_")]
    half = len(case.arrays[f"{name}/ids"]) // 2
    return [tuple(x[rows] for x in get("")) for rows in (slice(half), slice(half, None))]


def batch_of(case: Case, name: str) -> dict[str, jax.Array]:
    """TRL's batch as rows of two texts."""
    length = max(ids.shape[1] for ids, _, _ in texts(case, name))
    pad = lambda x: np.pad(x, ((0, 0), (0, length - x.shape[1])))  # noqa: E731
    ids, held, asked = (np.stack([pad(x) for x in both], 1) for both in zip(*texts(case, name), strict=True))
    after = lambda x: np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], -1)  # noqa: E731
    batch = {"tokens": ids, "targets": after(ids), "segment_ids": held, "weights": after(held * asked)}
    batch["positions"] = np.broadcast_to(np.arange(length), ids.shape)
    batch = {key: jnp.asarray(x, jnp.float32 if key == "weights" else jnp.int32) for key, x in batch.items()}
    if f"{name}/label" in case.arrays:
        batch["label"] = jnp.asarray(case.arrays[f"{name}/label"], jnp.int32)
    return batch


def weights_of(case: Case, name: str) -> tuple[Any, Any]:
    """(what is trained, its reference)."""
    if name.startswith("reward"):
        return case.weights(name, "scores.safetensors"), None
    return (case.other, case.tree) if name == "kto" else (case.tree, case.other)


def with_reference(case: Case, name: str, batch: dict) -> dict:
    if not OBJECTIVES[name].computed():
        return batch
    if name == "smoothed":
        return batch | {"reference": jnp.zeros((len(batch["tokens"]), 2))}
    return batch | {"reference": OBJECTIVES[name].log_probs(case.model, weights_of(case, name)[1], batch)}


def value(objective: Objective, case: Case, batch: dict, tree: Any) -> jax.Array:
    mean = objective.loss(case.model, tree, batch, rng=None, train=True).mean
    return mean.total / mean.count


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients(name, case):
    weights, _ = weights_of(case, name)
    batch = with_reference(case, name, batch_of(case, name))
    ours, gradients = jax.value_and_grad(functools.partial(value, OBJECTIVES[name], case, batch))(weights)
    theirs, expected = float(case.arrays[f"{name}/loss"]), case.weights(name, f"{name}.safetensors")
    # Each term of these losses is positive, but for robust's, whose absolute terms are more than
    # their sum.
    assert abs(float(ours) - theirs) <= 1e-5 * abs(theirs)
    got, wanted = params.paths(gradients), params.paths(expected)
    if name.startswith("reward"):
        wanted |= {path: jnp.zeros_like(x) for path, x in got.items() if path.startswith("head/")}
    assert got.keys() == wanted.keys()
    largest = max(float(jnp.abs(x).max()) for x in wanted.values())
    assert largest > 1e-4, "gradients of a size at which a comparison says something"
    assert max(float(jnp.abs(got[path] - wanted[path]).max()) for path in wanted) <= 1e-4 * largest


# Slow is KTO, whose loss has a term of the whole batch.
@pytest.mark.parametrize("name", few(OBJECTIVES, "kto", marks=pytest.mark.slow))
def test_twenty_steps(name, case):
    """Both sides take AdamW's steps on one batch, from the same weights."""
    weights, _ = weights_of(case, name)
    optim = OptimConfig(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, schedule="constant", warmup_steps=0, clip=1.0)
    batch = with_reference(case, name, batch_of(case, name))
    train = TrainConfig(steps=20, batch_size=len(batch["tokens"]))
    losses = losses_of_steps(Config(case.cfg, OBJECTIVES[name], DataConfig(), optim=optim, train=train), weights, batch)
    theirs = case.arrays[f"{name}/losses"]
    assert theirs[-1] < 0.8 * theirs[0], "the curve falls"
    assert distance(losses, theirs) <= 1e-3


@pytest.mark.slow
def test_the_distance_of_kto_is_above_its_floor(case):
    batch = with_reference(case, "kto", batch_of(case, "kto"))
    sums = OBJECTIVES["kto"].loss(case.model, case.other, batch, rng=None, train=True).metrics
    assert float(sums["kl"].compute()) > 0
