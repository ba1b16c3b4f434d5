"""Which number format each stage uses; casting happens once, at the top of the loss."""

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
    """param: how weights are stored between steps; compute: products in the model; matmul: those of a training step's
    products with weights that may be in 8 bits (nn/quantized.py), while evaluation is in `compute`.

    rounding: how an updated weight becomes a `param` of bfloat16. An update below half a bfloat16 step is lost by
    "nearest", always; "stochastic" rounds up or down by chance, so that many small updates move the weight as far as
    they should on average (arXiv:2010.06192). The optimizer's moments and the average of the weights are float32.

    Softmax, loss, norms, rotary angles and every reduction over a batch stay float32 whatever is chosen here:
    bfloat16 has 8 bits of mantissa, and a sum of thousands of terms loses what training needs.
    """

    param: Float = "float32"
    compute: Float = "float32"
    matmul: Matmul = "compute"
    rounding: Rounding = "nearest"


_context = threading.local()


@contextlib.contextmanager
def use(policy: Policy):
    """While a step is traced inside it, products with weights ask `matmul`."""
    previous = matmul()
    _context.value = policy.matmul
    try:
        yield
    finally:
        _context.value = previous


def matmul() -> Matmul:
    """The format of products with weights in what is being traced; "compute" outside `use`."""
    return getattr(_context, "value", "compute")


def cast(tree: Any, dtype: str) -> Any:
    """Floating leaves in `dtype`, all others untouched, and so are parameters that are stored in blocks."""

    def one(x):
        if isinstance(x, Blocked) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x
        return x.astype(dtype)

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Blocked))


# ------------------------------------------------------------------------------------------------ storing weights


def store(new: Any, old: Any, policy: Policy, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
    """(`new`, updated float32 weights, as `policy` stores them; the share of updates that the rounding lost).

    old: the weights as they were stored. rng: the step's key. The share is measured where weights are bfloat16: an
    update is lost where the weight differs before it is rounded and not after.
    """
    if policy.param == "float32":
        return new, {}
    rounded = _stochastic(new, rng) if policy.rounding == "stochastic" else cast(new, policy.param)

    def counts(new, rounded, old):
        asked = new != old.astype(new.dtype)
        return jnp.stack([jnp.sum(asked & (rounded == old), dtype=jnp.float32), jnp.sum(asked, dtype=jnp.float32)])

    total = sum(jax.tree.leaves(jax.tree.map(counts, new, rounded, old)))
    return rounded, {"lost_updates": Mean(total[0], total[1])}


def no_loss(policy: Policy) -> dict[str, Mean]:
    """The share that `store` measures, in a step that updates nothing."""
    return {} if policy.param == "float32" else {"lost_updates": Mean(jnp.zeros(()), jnp.zeros(()))}


def _stochastic(tree: Any, rng: jax.Array) -> Any:
    """Floating leaves as bfloat16; each parameter's draw depends on `rng` and its path alone."""
    rng = jax.random.fold_in(rng, zlib.crc32(b"rounding"))

    def one(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        key = jax.random.fold_in(rng, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return round_stochastic(x, key)

    return jax.tree_util.tree_map_with_path(one, tree)


def round_stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, one of the two neighbours, the nearer one the likelier: the mean is x.

    bfloat16 is float32 without its lower 16 bits. A uniform number below 2^16 added to these carries into the upper
    ones with the probability of what the lower ones hold.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> 16
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
