"""Parameter groups, selected by a pattern over paths, with their own rate, decay and optimizer."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import optax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Width
from bigmodel_jax.core.ranges import NonNegative, Share, ShareAboveZero
from bigmodel_jax.core.spelling import closest
from bigmodel_jax.optim import names
from bigmodel_jax.optim.penalties import by_layer, penalised
from bigmodel_jax.optim.widths import of_spec as widths_of
from bigmodel_jax.optim.widths import scaled

REST = "rest"  # the label, in an optimizer's state, of the parameters in no group


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings for the trained parameters whose whole path matches the regular expression
    `pattern`.

    A field that is None keeps the value of the whole run's config. A path names a stack of layers.
    A pattern cannot select one layer of a stack.
    """

    pattern: str
    lr: NonNegative | None = None  # the peak learning rate; the schedule keeps its form
    weight_decay: NonNegative | None = None  # the group's optim.weight_decay
    optimizer: names.Name | None = None  # the group's optim.name
    freeze: bool = False  # makes the parameters constants, without gradient and moments, outside the train state
    l1: NonNegative | None = None  # the group's optim.l1
    l2: NonNegative | None = None  # the group's optim.l2
    layer_decay: ShareAboveZero = 1.0  # each layer's rate is this factor times that of the layer above
    unfreeze: Share = 0.0  # share of the steps until the first layer trains; the last trains at once

    def done(self) -> str:
        """Describes in words what the group changes."""
        changes = [f"{name} {value}" for name, value in (self._changes() | self._by_layer()).items()]
        return "frozen" if self.freeze else ", ".join(changes) or "as the rest"

    def config(self, cfg: Any) -> Any:
        """The config of the group's optimizer: `cfg` with the group's changes."""
        changes = self._changes()
        name = {"name": changes.pop("optimizer")} if "optimizer" in changes else {}
        return dataclasses.replace(cfg, groups=(), **changes, **name)

    def _changes(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("optimizer", "lr", "weight_decay", "l1", "l2")}
        return {name: value for name, value in given.items() if value is not None}

    def _by_layer(self) -> dict[str, Any]:
        given = {"layer_decay": (self.layer_decay, 1.0), "unfreeze": (self.unfreeze, 0.0)}
        return {name: value for name, (value, nothing) in given.items() if value != nothing}


def assign(groups: tuple[Group, ...], spec: params.Tree) -> dict[str, int | None]:
    """Maps each trained or frozen parameter's path to the number of its group, or None for no
    group.

    The first group that matches a path counts. Parameters that a group freezes are included, so the
    result is the same before and after `freeze`. Raises ValueError for an invalid regular
    expression, for a pattern that no parameter is left for, and where no parameter would be
    trained.
    """
    patterns = [_compile(n, group) for n, group in enumerate(groups)]
    kinds = {path: p.kind for path, p in params.paths(spec).items() if p.kind != "statistic"}
    first = {path: next((n for n, p in enumerate(patterns) if p.fullmatch(path)), None) for path in kinds}
    found = {path: n for path, n in first.items() if kinds[path] == "trained" or _freezes(groups, n)}
    for n, group in enumerate(groups):
        if n not in found.values():
            raise ValueError(_unmatched(n, group, patterns[n], list(found)))
    if groups and all(_freezes(groups, n) for n in found.values()):
        raise ValueError("optim.groups freezes every parameter; at least one must be trained")
    return found


def _freezes(groups: tuple[Group, ...], n: int | None) -> bool:
    return n is not None and groups[n].freeze


def _compile(n: int, group: Group) -> re.Pattern:
    if group.freeze and (changes := group._changes() | group._by_layer()):
        raise ValueError(f"optim.groups[{n}] ({group.pattern!r}) has freeze = True and {', '.join(changes)}")
    try:
        return re.compile(group.pattern)
    except re.error as error:
        raise ValueError(
            f"optim.groups[{n}].pattern = {group.pattern!r} is not a regular expression: {error}"
        ) from None


def _unmatched(n: int, group: Group, pattern: re.Pattern, paths: list[str]) -> str:
    text = f"optim.groups[{n}].pattern = {group.pattern!r}"
    if any(pattern.fullmatch(path) for path in paths):
        return f"{text} matches only parameters that an earlier group has; the first match wins"
    near = ", ".join(closest(group.pattern, paths, 3))
    return f"{text} matches no trained parameter's whole path; the nearest: {near}"


def freeze(groups: tuple[Group, ...], spec: params.Tree) -> params.Tree:
    """`spec`, with the parameters that a group freezes as constants in their own dtype.

    Raises the errors of `assign`.
    """
    fixed = {path for path, n in assign(groups, spec).items() if _freezes(groups, n)}
    if not fixed:
        return spec
    constant = {
        path: p if path not in fixed else dataclasses.replace(p, kind="constant")
        for path, p in params.paths(spec).items()
    }
    return params.from_paths(constant)


class Owned(NamedTuple):
    """The optimizer of some parameters: a label in the state, an optimizer's config, and a group.

    Parameters of one group and one μP width share a label.
    """

    label: str
    config: Any
    group: Group | None

    def make(self, spec: params.Tree, total_steps: int) -> optax.GradientTransformation:
        named = self.group is not None and self.group.optimizer is not None
        make = functools.partial(names.transformation, self.config) if named else self.config.transformation
        tx = make(self.config.schedule_fn(total_steps), spec)
        tx = penalised(tx, self.config.l1, self.config.l2, names.decay_mask(spec))
        if self.group is None:
            return tx
        return by_layer(tx, spec, self.group.layer_decay, self.group.unfreeze * total_steps)


def owned(cfg: Any, spec: params.Tree) -> dict[str, Owned]:
    """Maps each trained parameter's path to its optimizer.

    Raises ValueError for an optimizer that has no μP rule.
    """
    widths = widths_of(params.of_kind(spec, spec, "trained"))
    kinds, found = list(dict.fromkeys(widths.values())), {}
    for path, n in assign(cfg.groups, spec).items():
        if _freezes(cfg.groups, n):
            continue
        group, width = None if n is None else cfg.groups[n], widths[path]
        label = REST if n is None else str(n)
        # Each μP width needs a rate of its own, so it gets a label of its own.
        label += "" if width == Width() else f".width{kinds.index(width)}"
        found[path] = Owned(label, scaled(cfg if group is None else group.config(cfg), width), group)
    return found


def combine(cfg: Any, spec: params.Tree, total_steps: int) -> optax.GradientTransformation:
    """One transformation for all trained parameters of `spec`.

    Each group, and each μP width within a group, has a transformation of its own. `cfg` gives that
    of all other parameters.
    """
    found = owned(cfg, spec)
    spec = params.of_kind(spec, spec, "trained")
    kinds = {one.label: one for one in found.values()}
    parts = {label: one.make(spec, total_steps) for label, one in kinds.items()}
    return optax.multi_transform(parts, params.from_paths({path: one.label for path, one in found.items()}))


def rate_names(groups: tuple[Group, ...]) -> dict[int, str]:
    """Maps each group's number to the name under which its rate is logged. Frozen groups
    have none.
    """
    texts = {n: re.sub(r"[^\w/.-]+", "_", g.pattern.replace(".*", "*")).strip("_/") for n, g in enumerate(groups)}
    twice = {text for text in texts.values() if list(texts.values()).count(text) > 1}
    return {n: f"learning_rate/{f'{n}_' * (t in twice)}{t}" for n, t in texts.items() if not groups[n].freeze}


# ---------------------------------------------------------------- the table


def rows(groups: tuple[Group, ...], spec: params.Tree) -> list[tuple[str, str, str, str, str]]:
    """Rows of the printed table, one per group and one for the rest.

    A row is (pattern, leaves, parameters, share of all trained and frozen parameters, changes).
    """
    found, sizes = assign(groups, spec), {path: p.size for path, p in params.paths(spec).items()}
    total = sum(sizes[path] for path in found)
    out = []
    for n, pattern, done in [*((n, g.pattern, g.done()) for n, g in enumerate(groups)), (None, "the rest", "trained")]:
        mine = [sizes[path] for path, at in found.items() if at == n]
        if not mine:  # there is no rest where the groups cover everything
            continue
        out.append((pattern, f"{len(mine):,}", f"{sum(mine):,}", f"{sum(mine) / total:.1%}", done))
    return out
