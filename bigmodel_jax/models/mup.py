"""μP: one learning rate for models of every width and depth, by comparison with a base model.

Tensor Programs V (arXiv:2203.03466, table 8) says how initial values, learning rates and
multipliers scale with widths. The depth scaling is CompleteP (arXiv:2505.01618, table 1, alpha =
1). A parameter's dimensions that differ between model and base are its widths, as with the `mup`
package's base shapes. Logical axes say which of them are inputs.

A multiplier before a weight equals a weight that starts and learns with that factor
(arXiv:2011.14522, section 2.2). The weights therefore hold the multipliers of the head, of
attention and of residual branches, and the rest of the program is the same as without μP. A table
that serves as embedding and head cannot hold a multiplier, so its logits are multiplied.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from bigmodel_jax.core import initial, params
from bigmodel_jax.core.params import Init, Param, Tree, Width
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.models.base import Model, ModelConfig, Out, Parts

QUERY = ("embed", "heads", "head_dim")


@dataclasses.dataclass(frozen=True)
class MupConfig:
    """The base model of μP, given by the sizes in which it differs from the model.

    base: sizes such as ("embed_dim=64", "num_heads=4"); () = no μP. A tower's size is written
    "vision.embed_dim=64", several sizes "hidden_dims=64,64". The base model trains as without μP:
    `optim.lr` and the initial values are the base's. If num_layers is among the sizes, depth
    scaling applies too.
    """

    base: tuple[str, ...] = ()

    def base_of(self, config: ModelConfig) -> ModelConfig:
        """The base model's config; ValueError, one line, for an entry that is no size."""
        for text in self.base:
            name, _, value = text.partition("=")
            config = _with(config, name.split("."), value, text)
        return config

    def validate(self, config: Any) -> None:
        """Raises ValueError if a run of `config`, a Config, cannot use μP."""
        if not self.base:
            return
        base = self.base_of(config.model)
        layers = getattr(base, "num_layers", 0) != getattr(config.model, "num_layers", 0)
        if why := config.model.no_mup(layers):
            raise ValueError(
                f"mup.base = {self.base!r}: {type(config.model).__name__} {why}; mup.base = () is without μP"
            )
        if config.adapters.named():
            raise ValueError(f"mup.base = {self.base!r} with adapters, which have no base widths; give one of the two")


def _with(config: Any, path: list[str], value: str, text: str) -> Any:
    first, *rest = path
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    now = known.get(first)
    if rest and dataclasses.is_dataclass(now):
        return dataclasses.replace(config, **{first: _with(now, rest, value, text)})
    if rest or not (_is_size(now) or (isinstance(now, tuple) and now and all(map(_is_size, now)))):
        sizes = [name for name, size in known.items() if _is_size(size)]
        raise ValueError(
            f"mup.base = {text!r} names no size of the model{nearest(first, sizes)}; known: {', '.join(sizes)}"
        )
    sizes = tuple(int(part) if part.strip().isdecimal() else 0 for part in value.split(","))
    if not all(sizes) or len(sizes) != (len(now) if isinstance(now, tuple) else 1):
        form = ",".join(map(str, now)) if isinstance(now, tuple) else now
        raise ValueError(f"mup.base = {text!r}; it must be of the form {'.'.join(path)}={form}")
    return dataclasses.replace(config, **{first: sizes if isinstance(now, tuple) else sizes[0]})


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------- the model


def scaled(model: Model, base: Model) -> Model:
    """`model` with μP's initial values and each parameter's `Width`, compared with `base`."""
    if model.init:
        raise ValueError("mup.base with a model that brings its own initial values; a spec must declare them")
    ours, theirs = params.paths(model.spec), params.paths(base.spec)
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"mup.base changes which parameters the model has: {sorted(ours.keys() ^ theirs.keys())[0]} is in one "
            "of the two alone; only sizes may differ"
        )
    widths = {path: _width(path, ours, theirs) for path in ours}
    spec = {path: _drawn(p, theirs[path], widths[path]) for path, p in ours.items()}
    ratios = {ours[path].shape[-1] / theirs[path].shape[-1] for path in _tied(model.spec)}
    model = model._replace(spec=params.from_paths(spec))
    return _with_head(model, 1.0 / ratios.pop()) if len(ratios) == 1 else model


def _tied(spec: Tree) -> list[str]:
    """The embedding tables over a vocabulary, if no table is a head alone; [] otherwise."""
    tables = [path for path, p in params.paths(spec).items() if "vocab" in p.axes and len(p.axes) == 2]
    found = [path for path in tables if is_embedding(path, params.paths(spec)[path])]
    return found if found == tables else []


def check_published(mup: MupConfig, model: Model) -> None:
    """Raises ValueError if the logits have a multiplier, which published formats cannot express."""
    if mup.base and model.make_cache is not None and (tied := _tied(model.spec)):
        raise ValueError(
            f"export: with mup.base the logits have a multiplier, because {tied[0]} is also the head, and no published "
            "form holds it; only a model with tied_embeddings = False can be exported"
        )


def _drawn(p: Param, base: Param, width: Width) -> Param:
    """`p` with its width, drawn like the base's parameter times the width's factor."""
    factor = width.multiplier * width.ins**-0.5
    if spread := base.init.spread:
        factor *= spread(base.shape) / spread(p.shape)
    if math.isclose(factor, 1.0):
        return dataclasses.replace(p, init=base.init, width=width)
    name = base.init.name if base.init.name in ("zeros",) else f"{base.init.name} * {factor:.4g}"
    draw = functools.partial(_times, base.init.fn, factor)
    return dataclasses.replace(p, init=Init(name, draw, base.init.spread), width=width)


def _times(fn: Callable, factor: float, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return fn(key, shape, dtype) * factor


def _with_head(model: Model, factor: float) -> Model:
    """The model with its logits over a vocabulary multiplied by `factor`."""

    def multiplied(out: Out) -> Out:
        if out.head is None:
            return out
        head = dataclasses.replace(out.head, x=out.head.x * factor)
        return out._replace(value=head.logits(), head=head)

    def after(fn: Callable, *args, **kwargs) -> Out:
        return multiplied(fn(*args, **kwargs))

    if factor == 1.0:
        return model
    if isinstance(model.apply, Parts):
        leave = functools.partial(after, model.apply.leave)
        return model._replace(apply=dataclasses.replace(model.apply, leave=leave))
    return model._replace(apply=functools.partial(after, model.apply))


# ------------------------------------------------------------------------------------------- widths


def is_embedding(path: str, p: Param) -> bool:
    """Whether a table over a vocabulary is looked up: all but those below "head" are."""
    return "vocab" in p.axes and len(p.axes) == 2 and "head" not in path.split("/")


def _width(path: str, ours: dict[str, Param], theirs: dict[str, Param]) -> Width:
    p, base = ours[path], theirs[path]
    ins, outs = (_ratio(p, base, side) for side in sides(path, p))
    depth = _depth(p, base)
    multiplier = _query_multiplier(path, ours, theirs) * (depth if _ends_branch(path, ours) else 1.0)
    if outs == 1.0:  # only the input is a width, as in a head: the paper's form has a multiplier of 1 / ins here
        return Width(1.0, depth / ins, multiplier / ins)
    return Width(ins, depth / outs, multiplier)


def _ratio(p: Param, base: Param, dims: tuple[int, ...]) -> float:
    return math.prod(p.shape[i] / base.shape[i] for i in dims)


def _depth(p: Param, base: Param) -> float:
    """The base's number of layers over the model's; 1 for a parameter outside a stack."""
    at = p.axes.index("layers") if "layers" in p.axes else None
    return 1.0 if at is None else base.shape[at] / p.shape[at]


def _lead(p: Param) -> int:
    """The number of leading dimensions that count separate weights, such as layers."""
    lead = next((i for i, axis in enumerate(p.axes) if axis not in initial.COPIES), len(p.axes))
    unnamed = not lead and len(p.axes) > 2 and p.axes[0] is None and p.axes[1] is not None
    return 1 if unnamed else lead


def sides(path: str, p: Param) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns (input dimensions, output dimensions) of a parameter.

    A vector, and a parameter without weight decay, has no input dimensions.
    """
    lead = _lead(p)
    axes = p.axes[lead:]
    if len(axes) < 2 or not p.decay:
        return (), tuple(range(lead, len(p.axes)))
    ins, outs = ((0,), (1,)) if is_embedding(path, p) else initial.fans(axes)
    return tuple(i + lead for i in ins), tuple(i + lead for i in outs)


def _query_multiplier(path: str, ours: dict[str, Param], theirs: dict[str, Param]) -> float:
    """The factor between 1/head_dim, by which μP scales attention's logits, and 1/sqrt(head_dim).

    The queries hold it, or the norm's scale if a norm follows the queries.
    """
    folder, _, name = path.rpartition("/")
    query, scale = f"{folder}/q", f"{folder.removesuffix('/q_norm')}/q_norm/scale"
    after = path == scale
    query = f"{folder.removesuffix('/q_norm')}/q" if after else query
    if query not in ours or ours[query].axes[_lead(ours[query]) :] != QUERY:
        return 1.0
    holds = after if scale in ours else name in ("q", "q_bias")
    return (theirs[query].shape[-1] / ours[query].shape[-1]) ** 0.5 if holds else 1.0


def _ends_branch(path: str, ours: dict[str, Param]) -> bool:
    """Whether a parameter makes what a layer adds to the residual.

    Such a parameter is a matrix whose only output is "embed", or the bias of such a matrix.
    """
    for end, matrix in (("", ""), ("_bias", ""), ("bias", "kernel")):
        other = ours.get(path.removesuffix(end) + matrix) if path.endswith(end) else None
        if other is not None and "layers" in other.axes:
            ins, outs = (tuple(other.axes[i] for i in side) for side in sides(path, other))
            if ins and outs == ("embed",):
                return True
    return False
