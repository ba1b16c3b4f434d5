"""Muon (https://kellerjordan.github.io/posts/muon), with the matrices found by the spec's axes."""

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param

STACKS = ("layers", "experts")  # dimensions along which each matrix is one of several
# Updates get the root mean square of AdamW's, so that one rate serves both (arXiv:2502.16982).
RMS = 0.2


def dimensions(p: Param) -> MuonDimensionNumbers | None:
    """Which dimensions of a parameter are a matrix's input and output; None for what Adam trains.

    Adam trains vectors, tables and heads over a vocabulary, and input and output layers: what stands in no stack and
    has fewer than two named dimensions (patches, positions, classes).
    """
    axes = dict(enumerate(p.axes))
    named = [axis for axis in p.axes if axis and axis not in STACKS]
    if not p.decay or "vocab" in named or ("layers" not in p.axes and len(named) < 2):
        return None
    dims = [i for i, axis in axes.items() if axis not in STACKS]
    # One leading dimension without a name is a stack, too (dense layers before those with experts); several are the
    # window of a convolution, which belongs to the input.
    if "layers" not in p.axes and len(dims) > 2 and axes[dims[0]] is None and axes[dims[1]] is not None:
        dims = dims[1:]
    if len(dims) < 2:
        return None
    # (embed, heads, head_dim) goes from the first dimension, (heads, head_dim, embed) into the last one.
    cut = 1 if axes[dims[0]] == "embed" else len(dims) - 1
    return MuonDimensionNumbers(reduction_axis=tuple(dims[:cut]), output_axis=tuple(dims[cut:]))


def muon(cfg: Any, rate: optax.Schedule, mask: params.Tree, spec: params.Tree) -> optax.GradientTransformation:
    """Muon for the matrices, AdamW with `betas` and `eps` for the rest; weight decay where `mask` says."""
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
            # A function, since optax asks for the shape of the state with a placeholder in the place of the parameters.
            muon_weight_dimension_numbers=lambda tree: found if isinstance(tree, dict) else None,
            consistent_rms=RMS,
        ),
        # optax's Adam part has no mask.
        optax.add_decayed_weights(lambda count: -cfg.weight_decay * rate(count), by_adam),
    )
