"""Lower bounds on a layout's memory and step time, from array shapes alone.

They need no compiler and take microseconds. `plan --search` uses them to sort layouts and to reject
those that cannot fit.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import AXES, ParallelConfig, axis_names
from bigmodel_jax.data.fields import num_tokens
from bigmodel_jax.models import compute
from bigmodel_jax.nn import kept, pipeline, stack
from bigmodel_jax.plan.topology import Topology

HOST_LINK = 16e9  # bytes/s between a chip and its host: PCIe Gen4 x8 shared as on Google's hosts


def sums(config: Config, topology: Topology) -> tuple[float, float]:
    """(least bytes of one device, least seconds of one step) of a config's layout."""
    return memory(config), seconds(config, topology)


def memory(config: Config) -> float:
    """Bytes of master weights, gradients, optimizer moments, constants, and saved activations.

    This is a lower bound: a layout that it rejects cannot fit.
    """
    parallel, known = config.parallel, facts(config)
    moments = 0.0 if parallel.offload_optimizer else known.moments
    weights = jnp.dtype(config.precision.param).itemsize + 4  # bytes of a master weight and its float32 gradient
    waiting = tokens(config) / config.train.microbatches * saved(config.model, parallel)[0]
    # pipeline_remat recomputes a stage from its inputs, which are not counted here.
    if parallel.stage > 1 and parallel.pipeline_remat:
        waiting = 0.0
    elif parallel.pipeline_schedule == "1f1b":
        # The 1F1B schedule keeps the activations of fewer microbatches than it runs.
        n, m, r = _pipeline(parallel)
        waiting *= min(1.0, (n * (r + 2) - 1) / (m * r))
    # Saved activations take two bytes a number (bfloat16).
    return (weights * known.trained + moments + known.constant_bytes) / _cuts(parallel) + 2.0 * waiting


def seconds(config: Config, topology: Topology) -> float:
    """A lower bound on the seconds of one step.

    It is the slower of arithmetic and overlappable communication, plus what nothing overlaps: the
    sums of activations over `tensor`, for which the next product waits, and the transfers of
    moments between device and host.
    """
    chip, parallel, model = topology.chip, config.parallel, config.model
    known, rows = facts(config), tokens(config)
    count = known.trained
    _, hosted, passes = saved(model, parallel)
    n, m, r = _pipeline(parallel)
    ticks = pipeline.ticks(n, m, r) / r  # in passes of one stage's layers; m ticks do useful work
    met = passes * known.met + (passes - 2) * known.constants_met  # a constant has no gradient
    arithmetic = met * rows / parallel.tensor * ticks / m / chip.peak(config.precision.compute)
    links = chip.links * chip.link / chip.devices
    # Weights are gathered in the forward and the backward pass, and once more where the forward
    # pass is repeated. Gradients are scattered once.
    gathers = (3 if passes > 7 else 2) * config.train.microbatches + 1
    if n > 1:  # a stage owns its part of the weights, and gathers it at every tick
        gathers *= ticks / n
    gathered = 2.0 * count + known.constant_bytes  # weights in bfloat16, constants as they are stored
    hidden = gathers * gathered / (parallel.tensor * parallel.expert) * (parallel.fsdp > 1) / links
    mine, dcn = count / _cuts(parallel), chip.dcn / chip.devices
    by_data = topology.slices > 1 and parallel.data % topology.slices == 0
    if parallel.data > 1:
        hidden += 8.0 * mine / (dcn if by_data else links)
    if (
        parallel.stage % topology.slices and topology.slices > 1 and not by_data
    ):  # each chip sends its part of every gather to each of the other slices
        hidden += gathers * gathered / _cuts(parallel) * (topology.slices - 1) / dcn
    # Each layer has two sums over `tensor` in the forward pass and two in the backward pass. Each
    # sum is a gather and a scatter along one torus axis.
    activations = getattr(model, "num_layers", 1) * getattr(model, "embed_dim", 0) * rows
    waited = 8.0 * 2.0 * activations * (parallel.tensor > 1) / (2 * chip.link)
    host = 2 * known.moments / _cuts(parallel) if parallel.offload_optimizer else 0.0
    return max(arithmetic, hidden, 4.0 * rows * hosted / HOST_LINK) + waited + host / HOST_LINK


def _cuts(parallel: ParallelConfig) -> int:
    """How many shards the parameters are split into."""
    return parallel.stage * parallel.fsdp * parallel.expert * parallel.tensor


def _pipeline(parallel: ParallelConfig) -> tuple[int, int, int]:
    """(stages, microbatches, rounds) of the pipeline; one of each without a pipeline."""
    return parallel.stage, parallel.pipeline_microbatches or parallel.stage, parallel.pipeline_rounds


def tokens(config: Config) -> float:
    """Tokens of a step on one device.

    Image data counts images, not patches.
    """
    sizes = dict(zip(AXES, config.parallel.sizes(), strict=True))
    shards = math.prod(sizes[axis] for axis in axis_names(config.parallel.rules.batch)) * config.parallel.seq
    return config.train.batch_size * max(num_tokens(config.data.row()), 1) / shards


def saved(model: Any, parallel: Any) -> tuple[float, float, float]:
    """(numbers per token saved on the device, the same on the host, FLOPs per token and weight).

    The numbers are those of all layers. A layer of width D may save its input (D), the queries,
    keys and values, attention's result, and the MLP's two products. The FLOPs are 6 without
    recomputation, and 8 where everything is recomputed.
    """
    layers, D, tensor = getattr(model, "num_layers", 1), getattr(model, "embed_dim", 0), parallel.tensor
    if cuts_sequence(parallel):
        D = D / tensor
    heads, head_dim = getattr(model, "num_heads", 0), getattr(model, "head_dim", 0)
    attn = heads * head_dim / tensor
    kv_heads = getattr(model, "num_kv_heads", heads)
    # Keys and values are replicated where `tensor` does not divide their heads.
    qkv = attn + 2 * (kv_heads / tensor if kv_heads % tensor == 0 else kv_heads) * head_dim
    mlp = 2 * getattr(model, "mlp_dim", 0) / tensor
    remat, width = compute.remat(model), {kept.INPUT: D, kept.QKV: qkv, kept.ATTN: attn, kept.MLP: mlp}
    if remat == "dots":
        return layers * (2 * D + qkv + attn + mlp), 0, 6.2
    if remat in ("none", ""):
        return layers * (4 * D + qkv + attn + 2 * mlp), 0, 6.0
    names = stack.SAVED.get(remat, stack.OFFLOADED.get(remat, ()))
    passes = 8.0 - sum({kept.QKV: 0.4, kept.MLP: 1.2}.get(name, 0) for name in names)
    numbers = layers * sum(width[name] for name in names)
    return (0, numbers, passes) if remat in stack.OFFLOADED else (layers * D + numbers, 0, passes)


def cuts_sequence(parallel: ParallelConfig) -> bool:
    """Whether the residual stream's sequence dimension is sharded over `tensor`."""
    return "tensor" in axis_names(parallel.rules.residual_seq)


class Facts(NamedTuple):
    """Sizes of a config's parameters.

    trained: number of trained parameters. met: the number of trained parameters by which one token
    is multiplied. An expert counts in proportion to the tokens that it receives. constants_met: the
    same for the constants' matrices. constant_bytes: bytes of all constants. moments: bytes of the
    optimizer state.
    """

    trained: int
    met: float
    constants_met: float
    constant_bytes: int
    moments: int


def facts(config: Config) -> Facts:
    """The sizes of a config's parameters, which do not depend on the layout."""
    return _facts(compute.reset(config.model), config.adapters, config.objective, config.optim)


@functools.cache
def _facts(model: Any, adapters: Any, objective: Any, optim: Any) -> Facts:
    spec = Config(model, objective, None, optim=optim, adapters=adapters).make_model().spec
    trained, constants = (params.paths(params.of_kind(spec, spec, kind)) for kind in ("trained", "constant"))
    abstract = params.abstract(params.from_paths(trained))
    state = jax.eval_shape(optim.make(spec, 1000).tx.init, abstract)
    return Facts(
        sum(p.size for p in trained.values()),
        _met(model, trained),
        # Vectors and embedding tables take no matrix product.
        _met(model, {path: p for path, p in constants.items() if len(p.shape) >= 2 and "vocab" not in p.axes}),
        _bytes(params.abstract(params.from_paths(constants))),
        _bytes(state),
    )


def _met(model: Any, flat: dict[str, params.Param]) -> float:
    total = sum(p.size for p in flat.values())
    if not hasattr(model, "num_experts"):
        return total
    experts = sum(p.size for path, p in flat.items() if "/experts/" in f"/{path}/")
    # A token meets only `experts_per_token` of the experts.
    return total - experts * (1 - model.experts_per_token / model.num_experts)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
