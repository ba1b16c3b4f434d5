"""Groups of parameters by a pattern over their paths: rates, decay and optimizers of their own, or no training at all."""

import dataclasses
import re
from typing import Any

import optax

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.core.spelling import closest
from bigmodel_jax.optim import names

REST = "rest"  # the parameters in no group, among the labels of a state


@dataclasses.dataclass(frozen=True)
class Group:
    """The trained parameters whose whole path matches the regular expression `pattern`, and what differs for them.

    None: as the config says for all. A path names a stack of layers and not one layer of it.
    """

    pattern: str
    lr: NonNegative | None = None  # the peak of the rate; the schedule's form stays
    weight_decay: NonNegative | None = None
    optimizer: names.Name | None = None
    freeze: bool = False  # a constant: no gradient, no moments, no part of the train state

    def done(self) -> str:
        """What the group changes, in words."""
        changes = [f"{name} {value}" for name, value in self._changes().items()]
        return "frozen" if self.freeze else ", ".join(changes) or "as the rest"

    def config(self, cfg: Any) -> Any:
        """The config of the group's own optimizer."""
        changes = self._changes()
        name = {"name": changes.pop("optimizer")} if "optimizer" in changes else {}
        return dataclasses.replace(cfg, groups=(), **changes, **name)

    def _changes(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("optimizer", "lr", "weight_decay")}
        return {name: value for name, value in given.items() if value is not None}


def assign(groups: tuple[Group, ...], spec: params.Tree) -> dict[str, int | None]:
    """{path of a trained or frozen parameter: number of the first group that matches it, or None}.

    A frozen one is a constant that a group freezes, so that the answer is the same before and after `freeze`. ValueError
    for a pattern that is no regular expression or that no parameter is left for, and where nothing trains.
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
    if group.freeze and group._changes():
        raise ValueError(f"optim.groups[{n}] ({group.pattern!r}) has freeze = True and {', '.join(group._changes())}")
    try:
        return re.compile(group.pattern)
    except re.error as error:
        raise ValueError(f"optim.groups[{n}].pattern = {group.pattern!r} is no regular expression: {error}") from None


def _unmatched(n: int, group: Group, pattern: re.Pattern, paths: list[str]) -> str:
    text = f"optim.groups[{n}].pattern = {group.pattern!r}"
    if any(pattern.fullmatch(path) for path in paths):
        return f"{text} matches only parameters that an earlier group has; the first match wins"
    near = ", ".join(closest(group.pattern, paths, 3))
    return f"{text} matches no trained parameter's whole path; the nearest: {near}"


def freeze(groups: tuple[Group, ...], spec: params.Tree) -> params.Tree:
    """`spec` with each parameter that a group freezes as a constant, stored as it is; errors as in `assign`."""
    fixed = {path for path, n in assign(groups, spec).items() if _freezes(groups, n)}
    if not fixed:
        return spec
    constant = {
        path: p if path not in fixed else dataclasses.replace(p, kind="constant")
        for path, p in params.paths(spec).items()
    }
    return params.from_paths(constant)


def combine(cfg: Any, spec: params.Tree, total_steps: int) -> optax.GradientTransformation:
    """One transformation for the trained parameters of `spec`: each group's own, and `cfg`'s for the rest."""
    found = {path: n for path, n in assign(cfg.groups, spec).items() if not _freezes(cfg.groups, n)}
    labels = {path: REST if n is None else str(n) for path, n in found.items()}
    spec = params.of_kind(spec, spec, "trained")
    parts = {REST: cfg.transformation(cfg.schedule_fn(total_steps), spec)}
    for n, group in enumerate(cfg.groups):
        own = group.config(cfg)
        make = own.transformation if group.optimizer is None else lambda *a, own=own: names.transformation(own, *a)
        parts[str(n)] = make(own.schedule_fn(total_steps), spec)
    return optax.multi_transform({name: parts[name] for name in set(labels.values())}, params.from_paths(labels))


def rate_names(groups: tuple[Group, ...]) -> dict[int, str]:
    """The name under which each group's rate is logged, by number; frozen groups have none."""
    texts = {n: re.sub(r"[^\w/.-]+", "_", g.pattern.replace(".*", "*")).strip("_/") for n, g in enumerate(groups)}
    twice = {text for text in texts.values() if list(texts.values()).count(text) > 1}
    return {n: f"learning_rate/{f'{n}_' * (t in twice)}{t}" for n, t in texts.items() if not groups[n].freeze}


# ------------------------------------------------------------------------------------------------ the table


def rows(groups: tuple[Group, ...], spec: params.Tree) -> list[tuple[str, str, str, str, str]]:
    """(pattern, leaves, parameters, share of the trained and frozen ones, what is done) of each group, and of the rest."""
    found, sizes = assign(groups, spec), {path: p.size for path, p in params.paths(spec).items()}
    total = sum(sizes[path] for path in found)
    out = []
    for n, pattern, done in [*((n, g.pattern, g.done()) for n, g in enumerate(groups)), (None, "the rest", "trained")]:
        mine = [sizes[path] for path, at in found.items() if at == n]
        if not mine:  # the rest, where the groups have everything
            continue
        out.append((pattern, f"{len(mine):,}", f"{sum(mine):,}", f"{sum(mine) / total:.1%}", done))
    return out
