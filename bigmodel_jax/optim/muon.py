"""Muon (https://kellerjordan.github.io/posts/muon), which finds each matrix by the spec's axes."""

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param

STACKS = ("layers", "experts")  # along these dimensions a parameter stacks several matrices
# Updates are scaled to the root mean square of AdamW's updates, so that one learning rate fits both
# (arXiv:2502.16982).
RMS = 0.2


def dimensions(p: Param) -> MuonDimensionNumbers | None:
    """The input and output dimensions of a matrix; None for a parameter that Adam trains.

    Adam trains vectors, embedding tables and heads over a vocabulary, and also input and output
    layers: parameters outside the stack of layers with fewer than two named dimensions (patches,
    positions, classes).
    """
    axes = dict(enumerate(p.axes))
    named = [axis for axis in p.axes if axis and axis not in STACKS]
    if not p.decay or "vocab" in named or ("layers" not in p.axes and len(named) < 2):
        return None
    dims = [i for i, axis in axes.items() if axis not in STACKS]
    # A single leading dimension without a name is a stack too, such as dense layers before layers
    # with experts. Several unnamed dimensions are the window of a convolution and belong to the
    # input.
    if "layers" not in p.axes and len(dims) > 2 and axes[dims[0]] is None and axes[dims[1]] is not None:
        dims = dims[1:]
    if len(dims) < 2:
        return None
    # (embed, heads, head_dim) maps from its first dimension; (heads, head_dim, embed) maps into its
    # last dimension.
    cut = 1 if axes[dims[0]] == "embed" else len(dims) - 1
    return MuonDimensionNumbers(reduction_axis=tuple(dims[:cut]), output_axis=tuple(dims[cut:]))


def muon(cfg: Any, rate: optax.Schedule, mask: params.Tree, spec: params.Tree) -> optax.GradientTransformation:
    """Muon for matrices and AdamW (with `betas` and `eps`) for the rest. `mask` says what
    decays.
    """
    found = params.map_spec(dimensions, spec)
    by_adam = params.map_spec(lambda p, m: m and dimensions(p) is None, spec, mask)
    b1, b2 = cfg.betas
    return optax.chain(
        optax.contrib.muon(
            rate,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            weight_decay_mask=mask,
            adam_b1=b1,
            adam_b2=b2,
            # This is a function, because optax passes a placeholder in place of the parameters to
            # find the state's shape.
            muon_weight_dimension_numbers=lambda tree: found if isinstance(tree, dict) else None,
            consistent_rms=RMS,
        ),
        # optax gives the Adam part no decay mask, so the decay is added here.
        optax.add_decayed_weights(lambda count: -cfg.weight_decay * rate(count), by_adam),
    )
