"""Number formats of weights, computation and matrix products. Weights are cast once per loss."""

import contextlib
import dataclasses
import threading
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.storage import Blocked

Float = Literal["float32", "bfloat16"]
Matmul = Literal["compute", "int8", "float8"]
Rounding = Literal["nearest", "stochastic"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The number formats of a run.

    With rounding "nearest", an update below half a bfloat16 step is always lost. "stochastic"
    rounds up or down at random, so that many small updates move the weight by the right amount on
    average (arXiv:2010.06192). Optimizer moments and the average of the weights are always float32.

    Softmax, loss, norms, rotary angles and every reduction over a batch are always float32:
    bfloat16 has an 8-bit mantissa, and sums of thousands of terms would lose too much.
    """

    param: Float = "float32"  # stored weights, between steps
    compute: Float = "float32"  # the model's operations
    matmul: Matmul = "compute"  # a training step's products with weights that may be 8-bit (nn/quantized.py)
    rounding: Rounding = "nearest"  # how an updated weight becomes bfloat16, if `param` is


_context = threading.local()


@contextlib.contextmanager
def use(policy: Policy):
    """A context in which a step is traced: inside it `matmul()` returns the policy's format."""
    previous = matmul()
    _context.value = policy.matmul
    try:
        yield
    finally:
        _context.value = previous


def matmul() -> Matmul:
    """The format of products with weights in the step being traced; "compute" outside `use`."""
    return getattr(_context, "value", "compute")


def cast(tree: Any, dtype: str) -> Any:
    """The tree with floating leaves cast to `dtype`.

    Other leaves and `Blocked` parameters are unchanged.
    """

    def one(x):
        if isinstance(x, Blocked) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x
        return x.astype(dtype)

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Blocked))


# ---------------------------------------------------------------------------------- storing weights


def store(new: Any, old: Any, policy: Policy, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
    """Returns (updated float32 weights `new` in the policy's format, {"lost_updates": share lost}).

    old: the stored weights before the update. rng: the step's key. The share is measured only for
    bfloat16 weights: an update counts as lost if the weight changed before rounding and not after
    it.
    """
    if policy.param == "float32":
        return new, {}
    rounded = _stochastic(new, rng) if policy.rounding == "stochastic" else cast(new, policy.param)

    def counts(new, rounded, old):
        # A weight counts only if the optimizer wanted to change it.
        asked = new != old.astype(new.dtype)
        return jnp.stack([jnp.sum(asked & (rounded == old), dtype=jnp.float32), jnp.sum(asked, dtype=jnp.float32)])

    total = sum(jax.tree.leaves(jax.tree.map(counts, new, rounded, old)))
    return rounded, {"lost_updates": Mean(total[0], total[1])}


def no_loss(policy: Policy) -> dict[str, Mean]:
    """The metric that `store` would return, with zero counts, for a step that updates nothing."""
    return {} if policy.param == "float32" else {"lost_updates": Mean(jnp.zeros(()), jnp.zeros(()))}


def _stochastic(tree: Any, rng: jax.Array) -> Any:
    """Floating leaves rounded to bfloat16.

    Each parameter's noise depends only on `rng` and its path.
    """
    # Rounding has a stream of its own, so that dropout and rounding do not use equal keys.
    rng = jax.random.fold_in(rng, zlib.crc32(b"rounding"))

    def one(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        key = jax.random.fold_in(rng, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return round_stochastic(x, key)

    return jax.tree_util.tree_map_with_path(one, tree)


def round_stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds float32 to one of its two bfloat16 neighbours at random, so that the expected value is
    x.

    bfloat16 is float32 without its lower 16 bits. Adding a uniform 16-bit number carries into the
    upper bits with a probability that equals the lower bits divided by 2^16.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> 16
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    # A carry out of the bits of a NaN could make it finite.
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
