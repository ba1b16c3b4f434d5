"""Measure a run's speed and compare it with the device's peak: FLOPs, peak, rolling rates."""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from bigmodel_jax.core import params, peaks
from bigmodel_jax.models import compute


def count_flops(fn: Callable, *abstract_args) -> float:
    """FLOPs of the matrix products and convolutions of `fn`, 2 m n k each, from its jaxpr.

    Nothing is computed. A scan's body counts once per iteration, and a shard_map's body once per
    device. A `while` body counts once, since its number of iterations is unknown. The costliest
    branch of a `cond` counts. Causal attention counts as the full square (PaLM, arXiv:2204.02311,
    appendix B).
    """
    jaxpr = jax.make_jaxpr(fn)(*abstract_args).jaxpr
    # Drop operations that no result needs, for example logits if the loss is computed without them.
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _jaxpr_flops(jaxpr)


def step_flops(config, tree, batch) -> float:
    """Useful FLOPs of one training step of `config` on all devices: 3 x its forward pass.

    tree: all parameters, or their shapes. A model with constants needs fewer FLOPs, so its products
    are counted in the gradient of the trained parameters. Attention counts min(T, window) keys per
    query. Recomputation (remat) and padding to whole blocks are not useful work and do not count.
    """
    attends = isinstance(compute.of(config.model), compute.Compute)
    # Remat repeats products, and attention kernels hide their products from the jaxpr. So both are
    # off here.
    plain = {"remat": "none"} | ({"attention": "plain"} if attends else {})
    if compute.of(config.model):
        config = dataclasses.replace(config, model=compute.changed(config.model, **plain))
    model = config.make_model()
    trained = params.of_kind(tree, model.spec, "trained")

    def forward(tree, batch):
        return config.objective.loss(model, tree, batch, rng=jax.random.key(0), train=True).mean.total

    def backward(trained, tree, batch):
        return jax.grad(lambda trained: forward(params.merge(tree, trained), batch))(trained)

    trained, tree, batch = jax.eval_shape(lambda *all_: all_, trained, tree, batch)
    if params.of_kind(tree, model.spec, "constant"):
        return count_flops(backward, trained, tree, batch) - 3.0 * unseen_flops(config, batch)
    # The backward pass has two products for each product of the forward pass.
    return 3.0 * (count_flops(forward, tree, batch) - unseen_flops(config, batch))


def unseen_flops(config, batch) -> float:
    """Forward FLOPs of plain attention on keys that a layer's window hides from each query."""
    windows = [window for window in config.model.windows() if window]
    if not windows:
        return 0.0
    num, T = batch["tokens"].size, batch["tokens"].shape[-1]
    unseen = sum(T - min(T, window) for window in windows)
    # Attention has two products, of queries with keys and of weights with values. Each takes 2
    # FLOPs for every query, key and dimension.
    return 4.0 * num * unseen * config.model.num_heads * config.model.head_dim


def step_size(data, batch) -> tuple[int, str]:
    """Returns (the number of items that a step's loss is a mean over, "tokens" or "examples").

    Items are tokens if the data declares weights along the sequence, else examples.
    """
    weights = data.row().get("weights")
    per_token = weights is not None and "seq" in weights.axes
    return (
        (batch.get("tokens", batch["weights"]).size, "tokens") if per_token else (batch["weights"].shape[0], "examples")
    )


def peak_flops(devices: list[jax.Device], dtype: str) -> tuple[float, str]:
    """Returns (peak FLOP/s of one of `devices` in `dtype`, a phrase that names the figure's
    source).
    """
    kind = devices[0].device_kind
    peak = peaks.find(kind)
    if peak and dtype in ("bfloat16", "float16", "float32"):
        return (peak.single if dtype == "float32" else peak.half), f"{kind} data sheet"
    measured = _measured_peak(devices[0].platform, dtype)
    # Virtual CPU devices share one machine, so each has an equal share of its peak.
    share = len(jax.local_devices(backend="cpu")) if devices[0].platform == "cpu" else 1
    return measured / share, "measured matmul peak"


class Throughput:
    """Mean rates over the last `window` steps, from plain numbers. It never waits for a device.

    flops_per_step: FLOPs of one step on all devices. peak: FLOP/s of all devices together; 0 if
    unknown.
    """

    def __init__(self, flops_per_step: float, peak: float, window: int = 20):
        self._flops_per_step, self._peak = flops_per_step, peak
        self._steps: collections.deque[tuple[float, float]] = collections.deque(maxlen=window)

    def record(self, step_seconds: float, data_wait_seconds: float) -> None:
        """Record the wall time of one step, and the part of it spent waiting for the batch."""
        self._steps.append((step_seconds, data_wait_seconds))

    def rates(self, tokens_per_step: float) -> dict[str, float]:
        """tokens_per_second, mfu (0 to 1), step_seconds, data_wait_seconds; empty at first."""
        if not self._steps:
            return {}
        step, wait = (sum(column) / len(self._steps) for column in zip(*self._steps, strict=True))
        return {
            "tokens_per_second": tokens_per_step / step,
            "mfu": self._flops_per_step / (step * self._peak) if self._peak else 0.0,
            "step_seconds": step,
            "data_wait_seconds": wait,
        }


def _jaxpr_flops(jaxpr: Jaxpr) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)
    if name == "ragged_dot_general":
        return _ragged_flops(equation)
    if name == "conv_general_dilated":
        # Each output element takes one product per kernel weight of its output feature.
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_features
    if params.get("name") == "grouped_product":  # a kernel that replaces `ragged_dot` (nn/experts/hopper.py)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * equation.invars[0].aval.shape[-1]
    bodies = [_jaxpr_flops(body) for body in _bodies(params)]
    if name == "cond":
        return max(bodies)
    times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
    return times * sum(bodies)


def _ragged_flops(equation) -> float:
    """FLOPs of a ragged dot. Each row is multiplied with its own group's matrix only, so the count
    equals that of all rows times one matrix.
    """
    dims = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), (batch, _) = dims.dot_dimension_numbers
    lhs, rhs = (v.aval.shape for v in equation.invars[:2])
    if not dims.rhs_group_dimensions:  # gradient of the matrices: each group contracts its own rows
        return 2.0 * math.prod(lhs) * math.prod(rhs) / math.prod(lhs[d] for d in (*contracted, *batch))
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)


def _bodies(params: dict) -> list[Jaxpr]:
    """All jaxprs among an equation's parameters: jit, remat, custom_vjp, scan, while, cond."""
    leaves = [leaf for value in params.values() for leaf in (value if isinstance(value, tuple) else (value,))]
    closed = [leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf for leaf in leaves]
    return [leaf for leaf in closed if isinstance(leaf, Jaxpr)]


@functools.cache
def _measured_peak(platform: str, dtype: str, seconds: float = 0.4) -> float:
    """FLOP/s of the fastest of repeated square matrix products on one device.

    On a CPU, one device uses the whole machine.
    """
    size = 1024 if platform == "cpu" else 4096
    x = jax.device_put(jnp.ones((size, size), dtype), jax.local_devices(backend=platform)[0])
    # The first call compiles, so it is made before the clock starts.
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x).block_until_ready()
        # The shortest time counts, since other processes can only add to it.
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
