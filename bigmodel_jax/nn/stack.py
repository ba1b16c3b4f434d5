"""Running a stack of equal layers whose parameters lie stacked along dimension 0."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.nn import kept, pipeline, taps
from bigmodel_jax.nn.lora import BRANCH

# What a layer keeps for its backward pass beside its input, or, offloaded, in the host's memory; the rest is computed again.
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
    """The tensors of these names go to the host's memory and come back for the backward pass."""
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
    """Applies `block(layer_params, x, layer_xs, *shared) -> (x, ys)` layer by layer; returns (x, stacked ys).

    shared: whatever else has the batch as dimension 0 (positions, a memory): the block must not close over it. In a step
    for several stages the layers run as a pipeline (pipeline.py), and ys must then be sums over rows.
    remat: which activations are recomputed in the backward pass, and which wait for it in the host's memory.
    unroll: one copy of the layer in the program per layer, instead of one in a loop; so it is, too, for layers `apart`.
    """
    layers = functools.partial(sequential, block, remat=remat, unroll=unroll)
    if not pipeline.active():
        return layers(stacked, x, xs, shared=shared)
    if taps.asked():
        raise ValueError("parallel.stage: taps are read on a mesh of one stage; a pipeline's layers return sums alone")
    return pipeline.run(layers, stacked, x, xs, shared, _kept(remat))


def _kept(remat):
    """The policy of all that layers keep: what POLICIES say, and the input of each, which is not theirs to say."""
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
    """`run`, and never a pipeline: for layers that every stage holds, and for ys that are no sums."""
    block, without_taps = taps.watch(block)

    def body(p, x, xs, *shared):
        return block(p, jax.tree.map(lambda leaf: checkpoint_name(leaf, kept.INPUT), x), xs, *shared)

    body = block if remat == "none" else jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=unroll)

    def step(carry, layer):
        return body(layer[0], carry, layer[1], *shared)

    if isinstance(stacked, tuple):
        layers = zip(stacked, _by_layer(xs, len(stacked)), strict=True)
    elif unroll:
        # Not scan's own `unroll`: split once, the layers' gradients come back by one concatenation.
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
    """What each layer of layers `apart` takes or gives, one by one: stacked, it would be copied in every turn of a loop.

    It stands in the tuple of a stack's xs, and what layers return in its place of ys stays apart as well."""

    layers: tuple


def _by_layer(xs: Any, num: int) -> Any:
    """xs of each layer."""
    if not _some_apart(xs):
        return unstack(xs) or [xs] * num
    return zip(*(x.layers if isinstance(x, Apart) else unstack(x) or [x] * num for x in xs), strict=True)


def _joined(xs: Any, ys: list) -> Any:
    """The ys of all layers, stacked where xs were."""
    if not _some_apart(xs):
        return _stacked(*ys)
    parts = zip(xs, zip(*ys, strict=True), strict=True)
    return tuple(Apart(tuple(y)) if isinstance(x, Apart) else _stacked(*y) for x, y in parts)


def _some_apart(xs: Any) -> bool:
    return isinstance(xs, tuple) and any(isinstance(x, Apart) for x in xs)


def _stacked(*trees: Any) -> Any:
    return jax.tree.map(lambda *y: jnp.stack(y), *trees)


def unstack(tree: Any) -> tuple:
    """The layers of a tree one by one; of a tree without leaves, none."""
    leaves, treedef = jax.tree.flatten(tree)
    return tuple(jax.tree.unflatten(treedef, layer) for layer in zip(*map(jnp.unstack, leaves), strict=True))


def num_layers(stacked: Any) -> int:
    return len(stacked) if isinstance(stacked, tuple) else jax.tree.leaves(stacked)[0].shape[0]


def apart(spec: Tree, params: Tree) -> Tree:
    """`params` with a tuple of layers for each stack of them: for a loop around `run`, which would otherwise copy every
    layer out of its stack in every turn (XLA's CPU backend does)."""
    if isinstance(spec, Param):
        return params
    inside = jax.tree.leaves(spec, is_leaf=lambda x: isinstance(x, Param))
    if inside and all(p.axes[:1] == ("layers",) for p in inside):
        return unstack(params)
    # Adapters are small, and lie by weights: they are cut where the weights are (models/adapted.py).
    return {name: part if name == BRANCH else apart(spec[name], part) for name, part in params.items()}
