"""What it takes to prove a layout: tiny models of four families, five steps of them on any mesh,
the program's collectives.

    uv run --group dev pytest tests/multidevice -m "slow or not slow" \\
        --layouts-table docs/layouts.md

A test of a layout is one call, `prove(layout, case, parallel, owed=...)`, a fixture of conftest.py
beside this file.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from text_axes import axes

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import BertConfig, LlamaConfig, MixtralConfig, ViTConfig
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.objectives import Classification, MaskedLanguageModel, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.plan.program import hlo
from bigmodel_jax.training.state import abstract_state, init_state
from bigmodel_jax.training.step import make_train_step

STEPS, ROWS, LENGTH = 5, 16, 16


def text_batch(step: int) -> dict:
    """Packed rows: up to three documents each, a fifth of the targets without weight."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (ROWS, LENGTH + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (ROWS, LENGTH)), axis=1).astype(np.int32)
    starts = np.maximum.accumulate(np.where(np.diff(segments, prepend=0) > 0, np.arange(LENGTH), 0), axis=1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": (np.arange(LENGTH) - starts).astype(np.int32),
        "weights": (rng.random((ROWS, LENGTH)) < 0.8).astype(np.float32),
    }


def image_batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "image": rng.random((ROWS, 8, 8, 1), np.float32),
        "label": rng.integers(0, 10, ROWS).astype(np.int32),
        "weights": np.ones(ROWS, np.float32),
    }


# Case -> (model, objective, batch of a step).
CASES = {
    "llama": (LlamaConfig.tiny(), NextToken(), text_batch),
    "mixtral": (MixtralConfig.tiny(), NextToken(), text_batch),
    "bert": (BertConfig.tiny(), MaskedLanguageModel(), text_batch),
    "vit": (ViTConfig.tiny(), Classification(), image_batch),
    "cnn_nnx": (CNNConfig.tiny(), Classification(), image_batch),
    "cnn_linen": (dataclasses.replace(CNNConfig.tiny(), door="linen"), Classification(), image_batch),
}


class Run(NamedTuple):
    losses: np.ndarray  # (STEPS,)
    norms: np.ndarray
    state: Any


def config_of(case: str, parallel: ParallelConfig, **changes) -> Config:
    """changes: fields of the model's config."""
    model, objective, _ = CASES[case]
    return Config(
        model=dataclasses.replace(model, **changes),
        objective=objective,
        data=DataConfig(),
        # eps: a gradient that is zero but for rounding (a key's bias) must not become a step of
        # full size.
        optim=OptimConfig(lr=1e-2, clip=0.5, eps=1e-4),
        parallel=parallel,
        train=TrainConfig(steps=STEPS, batch_size=ROWS),
    )


def place(batch: dict, mesh, rules) -> dict:
    return {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, axes(v))) for k, v in batch.items()}


def run(config: Config, case: str, num_devices: int, steps: int = STEPS) -> Run:
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:num_devices])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses, norms = [], []
    for i in range(steps):
        state, sums = step(state, place(CASES[case][2](i), mesh, config.parallel.rules))
        losses.append(float(sums["loss"].compute()))
        norms.append(float(sums["grad_norm"].compute()))
    return Run(np.array(losses), np.array(norms), state)


@functools.cache
def one_device(config: Config, case: str) -> Run:
    """The run that every layout must give, its state on the host; `config` is that of one
    device."""
    done = run(config, case, 1)
    return done._replace(state=sharding.to_host((done.state.params, done.state.frozen)))


def lowered(config: Config, case: str, devices: list | None = None) -> jax.stages.Lowered:
    """The step, lowered for all devices here or for others."""
    mesh = sharding.make_mesh(config.parallel, devices)

    def abstract(x):
        where = sharding.batch_sharding(mesh, config.parallel.rules, axes(x))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    batch = jax.tree.map(abstract, CASES[case][2](0))
    return make_train_step(config, mesh).lower(abstract_state(config, mesh), batch)


def collectives(config: Config, case: str) -> list[hlo.Collective]:
    """The collectives of the compiled step on all devices."""
    text = lowered(config, case).compile().as_text()
    return hlo.collectives(text, sharding.make_mesh(config.parallel))


def not_cut(state: Any, config: Config, mesh) -> list[str]:
    """Paths of parameters, moments and averages that do not lie where the rules put them."""
    want = params.paths(sharding.shardings(config.model.make().spec, mesh, config.parallel.rules))
    adam = state.opt_state[0]
    trees = {"params": state.params, "mu": adam.mu, "nu": adam.nu}
    return [
        f"{name}/{path}"
        for name, tree in trees.items()
        for path, leaf in params.paths(tree).items()
        if not leaf.sharding.is_equivalent_to(want[path], leaf.ndim)
        or leaf.addressable_shards[0].data.size * shards(want[path]) != leaf.size
    ]


def shards(where: jax.sharding.NamedSharding) -> int:
    """The number of pieces that a sharding cuts an array into."""
    return math.prod(where.mesh.shape[a] for axes in where.spec for a in sharding.axis_names(axes))


# ------------------------------------------------------------------------------- what a layout owes


def moved(config: Config, case: str, owed: dict[str, tuple[float, str]]) -> list[tuple[str, float, float, str]]:
    """(mesh axis, bytes of the buffers that the compiled step moves over it, bytes owed, formula).

    A collective over several axes counts on each of them.
    """
    measured = dict.fromkeys(sharding.AXES, 0.0)
    for c in collectives(config, case):
        for axis in c.axes:
            measured[axis] += c.count * c.bytes
    return [(axis, measured[axis], *owed.get(axis, (0.0, "nothing"))) for axis in measured if measured[axis]]


def local_bytes(config: Config, mesh, wanted: Callable[[str, params.Param, bool], bool]) -> int:
    """Counts the bytes of float32 parameters that `tensor` leaves on a device. Only parameters
    count for which wanted(path, param, whether fsdp cuts it) is true."""
    total = 0
    for path, p in params.paths(config.model.make().spec).items():
        spec = sharding.shardings({"p": p}, mesh, config.parallel.rules)["p"].spec
        axes = {a for dim in spec for a in sharding.axis_names(dim)}
        if wanted(path, p, "fsdp" in axes):
            total += 4 * p.size // (mesh.shape["tensor"] if "tensor" in axes else 1)
    return total


def activation_bytes(config: Config, mesh) -> int:
    """A: one activation (batch / (data x fsdp), T, D) in float32."""
    model = config.model
    length = LENGTH
    if hasattr(model, "image_shape"):
        length = 1 + math.prod(n // model.patch_size for n in model.image_shape[:2])
    return 4 * ROWS // sharding.batch_shards(mesh, config.parallel.rules) * length * model.embed_dim


def gate_bytes(config: Config, mesh) -> int:
    """G: one number per token and expert (batch / (data x fsdp), T, experts) in float32."""
    return 4 * ROWS // sharding.batch_shards(mesh, config.parallel.rules) * LENGTH * config.model.num_experts
