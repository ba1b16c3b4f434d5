"""Grad-CAM: which places of a convolutional network's last maps support a class.

Source: Selvaraju et al., arXiv:1610.02391. The maps are found in the traced program, so that models
need no hook. They are the last array after the last convolution that still has height and width.
Shapes: H height, W width, C channels of the maps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

CONVOLUTION = "conv_general_dilated"


def grad_cam(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array | None:
    """(H, W) float32, 0 or more: ReLU of the sum of the maps, weighted by their mean gradients.

    Equations 1 and 2. f: maps a picture (1, height, width, channels) to a scalar. Returns None if f
    has no convolution, or if no array after it has height and width.
    """
    program = jax.make_jaxpr(f)(x)
    at = last_maps(program.jaxpr)
    if at is None:
        return None
    index, maps = at
    before, after, crossing = _cut(program, index)
    values, place = before(x), crossing.index(maps)

    def rest(maps_BHWC: jax.Array) -> jax.Array:
        return after(*values[:place], maps_BHWC, *values[place + 1 :])[0]

    weights_C = jax.grad(rest)(values[place]).astype(jnp.float32).mean(axis=(0, 1, 2))
    return jax.nn.relu(values[place][0].astype(jnp.float32) @ weights_C)


def last_maps(jaxpr: core.Jaxpr) -> tuple[int, Any] | None:
    """(equation's index, variable) of the last array (1, H, W, C) that depends on the last
    convolution."""
    last = max((n for n, eqn in enumerate(jaxpr.eqns) if _convolves(eqn)), default=None)
    if last is None:
        return None
    found, behind = None, set()
    for n, eqn in enumerate(jaxpr.eqns[last:], last):
        # Follow the data flow from the last convolution.
        if n == last or any(v in behind for v in eqn.invars if isinstance(v, core.Var)):
            behind |= set(eqn.outvars)
            found = next(((n, v) for v in eqn.outvars if _is_map(v.aval)), found)
    return found


def _is_map(aval: Any) -> bool:
    floating = jnp.issubdtype(aval.dtype, jnp.floating)
    # A 1 x 1 map has no places to show.
    return floating and len(aval.shape) == 4 and aval.shape[0] == 1 and min(aval.shape[1:3]) > 1


def _convolves(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a convolution, or calls a function that contains one."""
    if eqn.primitive.name == CONVOLUTION:
        return True
    return any(_convolves(inner) for jaxpr in core.jaxprs_in_params(eqn.params) for inner in jaxpr.eqns)


def _cut(program: core.ClosedJaxpr, index: int) -> tuple[Callable, Callable, Sequence[Any]]:
    """Splits a program after an equation: (first part, second part, variables passed between
    them)."""
    jaxpr = program.jaxpr
    first, second = jaxpr.eqns[: index + 1], jaxpr.eqns[index + 1 :]
    made = [*jaxpr.invars, *(v for eqn in first for v in eqn.outvars)]
    used = {v for eqn in second for v in eqn.invars if isinstance(v, core.Var)} | set(jaxpr.outvars)
    # The variables that the second part needs become its inputs.
    crossing = [v for v in made if v in used]
    said = core.DebugInfo("grad_cam", "", None, None)
    # The two programs together compute the original one.
    before = core.Jaxpr(jaxpr.constvars, jaxpr.invars, crossing, first, debug_info=said)
    after = core.Jaxpr(jaxpr.constvars, crossing, jaxpr.outvars, second, debug_info=said)
    return *(core.jaxpr_as_fun(core.ClosedJaxpr(part, program.consts)) for part in (before, after)), crossing
