"""Runs a stack of equal layers, whose parameters are stacked along dimension 0."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.nn import kept, pipeline, taps
from bigmodel_jax.nn.lora import BRANCH

# The activations that a layer keeps for its backward pass besides its input, on the device (SAVED)
# or in host memory (OFFLOADED). All others are recomputed.
SAVED = {
    "save_attn": (kept.ATTN,),
    "save_qkv_attn": (kept.QKV, kept.ATTN),
    "save_qkv_attn_mlp": (kept.QKV, kept.ATTN, kept.MLP),
}
OFFLOADED = {
    "offload_input": (kept.INPUT,),
    "offload_attn": (kept.INPUT, kept.ATTN),
    "offload_qkv_attn": (kept.INPUT, kept.QKV, kept.ATTN),
}


def _offload(names: tuple[str, ...]):
    """A policy that moves the tensors of these names to host memory until the backward pass."""
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=names, offload_src="device", offload_dst="pinned_host"
    )


POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    **{remat: jax.checkpoint_policies.save_only_these_names(*names) for remat, names in SAVED.items()},
    **{remat: _offload(names) for remat, names in OFFLOADED.items()},
}
Remat = Literal["none", *POLICIES]


def run(
    block: Callable,
    stacked: Any,
    x: Any,
    xs: Any = None,
    *,
    shared: tuple = (),
    remat: Remat = "none",
    unroll: bool = False,
) -> tuple[Any, Any]:
    """Applies `block(layer_params, x, layer_xs, *shared) -> (x, ys)` to every layer.

    Returns (x, stacked ys). shared: all other inputs with the batch as dimension 0 (positions, an
    encoder's output). The block must not close over them. In a step for several stages the layers
    run as a pipeline (pipeline.py), and ys must be sums over rows. remat: which activations the
    backward pass recomputes, or fetches from host memory. unroll: the program has one copy of the
    layer per layer instead of a loop. Unstacked layers (`apart`) are always unrolled. Raises
    ValueError if taps are asked for in a pipeline.
    """
    layers = functools.partial(sequential, block, remat=remat, unroll=unroll)
    if not pipeline.active():
        return layers(stacked, x, xs, shared=shared)
    if taps.asked():
        raise ValueError("parallel.stage: taps need a mesh of one stage, because a pipeline's layers return only sums")
    return pipeline.run(layers, stacked, x, xs, shared, _kept(remat))


def _kept(remat):
    """The policy for a pipeline, which keeps each layer's input besides the arrays of POLICIES."""
    if remat == "none" or remat in OFFLOADED:
        return POLICIES.get(remat)
    inputs = jax.checkpoint_policies.save_only_these_names(kept.INPUT)
    return jax.checkpoint_policies.save_from_both_policies(inputs, POLICIES[remat])


def sequential(
    block: Callable,
    stacked: Any,
    x: Any,
    xs: Any = None,
    *,
    shared: tuple = (),
    remat: Remat = "none",
    unroll: bool = False,
) -> tuple[Any, Any]:
    """Does what `run` does, but never as a pipeline. It serves layers that every stage holds, and
    ys that are not sums.
    """
    block, without_taps = taps.watch(block)

    def body(p, x, xs, *shared):
        return block(p, jax.tree.map(lambda leaf: checkpoint_name(leaf, kept.INPUT), x), xs, *shared)

    body = block if remat == "none" else jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=unroll)

    def step(carry, layer):
        return body(layer[0], carry, layer[1], *shared)

    if isinstance(stacked, tuple):
        layers = zip(stacked, _by_layer(xs, len(stacked)), strict=True)
    elif unroll:
        # scan's own `unroll` would slice the stack in every layer. After one unstacking, one
        # concatenation joins the layers' gradients.
        layers = unstack((stacked, xs))
    else:
        return without_taps(jax.lax.scan(step, x, (stacked, xs)))
    ys = []
    for layer in layers:
        x, y = step(x, layer)
        ys.append(y)
    return without_taps((x, _joined(xs, ys)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """Inputs or outputs of unstacked layers, one per layer.

    If they were stacked, every turn of a loop would copy them. An entry of a stack's xs may be
    an `Apart`. The layers' outputs at that place in the tuple are then an `Apart` too.
    """

    layers: tuple


def _by_layer(xs: Any, num: int) -> Any:
    """The xs of each layer."""
    if not _some_apart(xs):
        return unstack(xs) or [xs] * num
    return zip(*(x.layers if isinstance(x, Apart) else unstack(x) or [x] * num for x in xs), strict=True)


def _joined(xs: Any, ys: list) -> Any:
    """The ys of all layers, stacked where the xs were stacked."""
    if not _some_apart(xs):
        return _stacked(*ys)
    parts = zip(xs, zip(*ys, strict=True), strict=True)
    return tuple(Apart(tuple(y)) if isinstance(x, Apart) else _stacked(*y) for x, y in parts)


def _some_apart(xs: Any) -> bool:
    return isinstance(xs, tuple) and any(isinstance(x, Apart) for x in xs)


def _stacked(*trees: Any) -> Any:
    return jax.tree.map(lambda *y: jnp.stack(y), *trees)


def unstack(tree: Any, layers_of: Callable = jnp.unstack) -> tuple:
    """The layers of a stacked tree, one by one; () for a tree without leaves. layers_of: gives the
    layers of one leaf.
    """
    leaves, treedef = jax.tree.flatten(tree)
    return tuple(jax.tree.unflatten(treedef, layer) for layer in zip(*map(layers_of, leaves), strict=True))


def num_layers(stacked: Any) -> int:
    """The number of layers of a stack, stacked or not."""
    return len(stacked) if isinstance(stacked, tuple) else jax.tree.leaves(stacked)[0].shape[0]


def apart(
    spec: Tree, params: Tree, layers_of: Callable | None = None, form: Callable[[Param, Any], Any] = lambda p, w: w
) -> Tree:
    """`params` with every stack of layers unstacked into a tuple, for a loop around `run`.

    XLA would otherwise copy every layer out of its stack in every turn of the loop. On a CPU the
    layers share the stack's memory. layers_of: as in `unstack`; None: for arrays. form: makes the
    weight of one layer, given its stack's declaration and the layer of it. Parameters that are
    unstacked stay as they are.
    """
    if isinstance(spec, Param) or isinstance(params, tuple):
        return params
    inside, treedef = jax.tree.flatten(spec, is_leaf=lambda x: isinstance(x, Param))
    if inside and all(p.axes[:1] == ("layers",) for p in inside):
        stacks = zip(inside, treedef.flatten_up_to(params), strict=True)
        weights = [[form(p, w) for w in unstack(stacked, layers_of or _views)] for p, stacked in stacks]
        return tuple(treedef.unflatten(layer) for layer in zip(*weights, strict=True))
    # Adapters are small and stored per weight; models/adapted.py unstacks them with the weights.
    return {name: part if name == BRANCH else apart(spec[name], part, layers_of, form) for name, part in params.items()}


def _views(stacked: jax.Array) -> Sequence[jax.Array]:
    """The layers of one array. On one CPU they are views of the stack and keep it in memory."""
    (first, *more) = stacked.devices()
    if more or first.platform != "cpu":
        return jnp.unstack(stacked)
    # A program is compiled again for arrays that are newly committed to a device.
    place = first if stacked.committed else None
    return [jax.device_put(layer, place, may_alias=True) for layer in np.asarray(stacked)]
