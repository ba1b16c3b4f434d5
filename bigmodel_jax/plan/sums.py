"""What a layout needs at least, from shapes alone: no compiler, microseconds. For sorting, and for rejecting what cannot be."""

import functools
import math
from typing import Any

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import AXES, ParallelConfig, axis_names
from bigmodel_jax.data.fields import num_tokens
from bigmodel_jax.models import compute
from bigmodel_jax.nn import kept, pipeline, stack
from bigmodel_jax.plan.topology import Topology

HOST_LINK = 16e9  # bytes/s between a chip and its host: PCIe Gen4 x 8, as Google's hosts share it


def sums(config: Config, topology: Topology) -> tuple[float, float]:
    """(bytes of a device that the layout cannot do without, seconds that a step takes at least)."""
    return memory(config), seconds(config, topology)


def memory(config: Config) -> float:
    """Master weights, gradients, moments, constants, and what layers save. A lower bound: what it rejects cannot fit."""
    parallel = config.parallel
    count = _counts(compute.reset(config.model))[0] / _cuts(parallel)
    moments = 0 if parallel.offload_optimizer else 2
    waiting = tokens(config) / config.train.microbatches * saved(config.model, parallel)[0]
    if parallel.stage > 1 and parallel.pipeline_remat:
        waiting = 0.0
    elif parallel.pipeline_schedule == "1f1b":
        n, m, r = _pipeline(parallel)
        waiting *= min(1.0, (n * (r + 2) - 1) / (m * r))
    constants = _constant_bytes(compute.reset(config.model)) / _cuts(parallel)
    return 4.0 * count * (2 + moments) + constants + 2.0 * waiting


def seconds(config: Config, topology: Topology) -> float:
    """The slower of arithmetic and the network that it can hide, and what nothing hides: sums of activations over `tensor`,
    which the next product waits for, and the time that moments and activations take to the host and back."""
    chip, parallel, model = topology.chip, config.parallel, config.model
    count, met = _counts(compute.reset(model))
    rows = tokens(config)
    _, hosted, passes = saved(model, parallel)
    n, m, r = _pipeline(parallel)
    ticks = pipeline.ticks(n, m, r) / r  # of a stage's layers; m of them do work
    arithmetic = passes * met * rows / parallel.tensor * ticks / m / chip.peak(config.precision.compute)
    links = chip.links * chip.link / chip.devices
    # Weights are gathered forward and backward, once more where the forward pass is repeated; gradients go the other way.
    gathers = (3 if passes > 7 else 2) * config.train.microbatches + 1
    if n > 1:  # a stage has its part of the weights, and gathers it at every tick
        gathers *= ticks / n
    hidden = 2.0 * gathers * count / (parallel.tensor * parallel.expert) * (parallel.fsdp > 1) / links
    mine, dcn = count / _cuts(parallel), chip.dcn / chip.devices
    by_data = topology.slices > 1 and parallel.data % topology.slices == 0
    if parallel.data > 1:
        hidden += 8.0 * mine / (dcn if by_data else links)
    if (
        parallel.stage % topology.slices and topology.slices > 1 and not by_data
    ):  # of every gather a chip sends its part to each of the other slices
        hidden += 2.0 * gathers * mine * (topology.slices - 1) / dcn
    # Over `tensor` two sums a layer, forward and backward, each a gather and a scatter along one axis of the torus.
    activations = getattr(model, "num_layers", 1) * getattr(model, "embed_dim", 0) * rows
    waited = 8.0 * 2.0 * activations * (parallel.tensor > 1) / (2 * chip.link)
    host = 16.0 * mine if parallel.offload_optimizer else 0.0
    return max(arithmetic, hidden, 4.0 * rows * hosted / HOST_LINK) + waited + host / HOST_LINK


def _cuts(parallel: ParallelConfig) -> int:
    """Pieces that the parameters are cut into."""
    return parallel.stage * parallel.fsdp * parallel.expert * parallel.tensor


def _pipeline(parallel: ParallelConfig) -> tuple[int, int, int]:
    """Stages, microbatches, rounds; without stages one of each."""
    return parallel.stage, parallel.pipeline_microbatches or parallel.stage, parallel.pipeline_rounds


def tokens(config: Config) -> float:
    """Tokens of a step on one device; of images, patches do not count: images."""
    sizes = dict(zip(AXES, config.parallel.sizes(), strict=True))
    shards = math.prod(sizes[axis] for axis in axis_names(config.parallel.rules.batch)) * config.parallel.seq
    return config.train.batch_size * max(num_tokens(config.data.row()), 1) / shards


def saved(model: Any, parallel: Any) -> tuple[float, float, float]:
    """(numbers per token that all layers save on the device, on the host, FLOPs per token and weight: 8 recompute all).

    Per layer of width D: its input D; queries, keys, values and attention's result; the MLP's two products.
    """
    layers, D, tensor = getattr(model, "num_layers", 1), getattr(model, "embed_dim", 0), parallel.tensor
    if cuts_sequence(parallel):
        D = D / tensor
    heads, head_dim = getattr(model, "num_heads", 0), getattr(model, "head_dim", 0)
    attn = heads * head_dim / tensor
    kv_heads = getattr(model, "num_kv_heads", heads)
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
    """Whether the sequence between a layer's products is cut over `tensor`."""
    return "tensor" in axis_names(parallel.rules.residual_seq)


@functools.cache
def _constant_bytes(model: Any) -> int:
    spec = model.make().spec
    constants = params.abstract(params.of_kind(spec, spec, "constant"))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(constants))


@functools.cache
def _counts(model: Any) -> tuple[int, float]:
    """(trainable parameters, those that a token meets: of the experts the ones that it is sent to)."""
    flat = params.paths(model.make().spec)
    total = sum(p.size for p in flat.values() if p.trainable)
    if not hasattr(model, "num_experts"):
        return total, total
    experts = sum(p.size for path, p in flat.items() if "/experts/" in f"/{path}/")
    return total, total - experts * (1 - model.experts_per_token / model.num_experts)
