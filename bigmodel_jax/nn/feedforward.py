"""The feed-forward layer of a Transformer block. Shapes: B batch, T tokens, D embed, F mlp."""

import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core.params import Init, Param, zeros
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.nn import kept, linear, recompute
from bigmodel_jax.nn.taps import tap


def swiglu_spec(dim: int, mlp_dim: int, *, init: Init, out_init: Init, bias: bool = False) -> dict[str, Param]:
    """gate and up (D, F), down (F, D); with `bias` gate_bias, up_bias (F,), down_bias (D,)."""
    vectors = {
        "gate_bias": Param((mlp_dim,), ("mlp",), zeros()),
        "up_bias": Param((mlp_dim,), ("mlp",), zeros()),
        "down_bias": Param((dim,), ("embed",), zeros()),
    }
    return (vectors if bias else {}) | {
        "gate": Param((dim, mlp_dim), ("embed", "mlp"), init),
        "up": Param((dim, mlp_dim), ("embed", "mlp"), init),
        "down": Param((mlp_dim, dim), ("mlp", "embed"), out_init),
    }


def swiglu(p: dict, x: jax.Array) -> jax.Array:
    """Returns (silu(x gate) * (x up)) down, (B, T, D) -> (B, T, D); Shazeer, arXiv:2002.05202."""
    hidden = recompute.from_arguments(lambda gate, up: jax.nn.silu(gate) * up)(*_gated(p, x))
    return tap("mlp", _biased(p, "down", _named(hidden)))


def geglu(p: dict, x: jax.Array, *, approximate: bool = True) -> jax.Array:
    """Returns (gelu(x gate) * (x up)) down, (B, T, D) -> (B, T, D).

    The parameters are those of `swiglu`. approximate: GELU is its tanh approximation.
    """
    hidden = recompute.from_arguments(lambda gate, up: jax.nn.gelu(gate, approximate=approximate) * up)(*_gated(p, x))
    return tap("mlp", linear.project(_named(hidden), p["down"]))


def _gated(p: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tap("units", _biased(p, "gate", x)), _biased(p, "up", x)


def _biased(p: dict, name: str, x: jax.Array) -> jax.Array:
    """x times a weight, plus its bias if `p` has one."""
    y = linear.project(x, p[name])
    return y + p[f"{name}_bias"] if f"{name}_bias" in p else y


def _named(hidden: jax.Array) -> jax.Array:
    """Shards the hidden units, and gives them the name by which rematerialization keeps them."""
    return checkpoint_name(constrain(hidden, "batch", "seq", "mlp"), kept.MLP)


def mlp_spec(dim: int, mlp_dim: int, *, init: Init, out_init: Init) -> dict:
    """up: kernel (D, F) and bias; down: kernel (F, D) and bias."""
    return {
        "up": linear.linear_spec(dim, mlp_dim, init=init, bias=True),
        "down": linear.linear_spec(mlp_dim, dim, axes=("mlp", "embed"), init=out_init, bias=True),
    }


def gelu_mlp(p: dict, x: jax.Array) -> jax.Array:
    """gelu(x up) down, (B, T, D) -> (B, T, D), with GPT-2's tanh approximation of GELU."""
    return mlp(p, x, functools.partial(jax.nn.gelu, approximate=True))


def mlp(p: dict, x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """activation(x up) down, (B, T, D) -> (B, T, D)."""
    hidden = recompute.from_arguments(activation)(tap("units", linear.linear(p["up"], x)))
    return tap("mlp", linear.linear(p["down"], _named(hidden)))
