"""The state with which a run starts: initial values, and parameters taken from other runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.checkpoint import kept, leaves, store
from bigmodel_jax.config import Config
from bigmodel_jax.core import mirror, params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.storage import Blocked
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.training import constants, run_folder, spikes, tables
from bigmodel_jax.training.constants import Place
from bigmodel_jax.training.saved import load_weights, merged
from bigmodel_jax.training.state import (
    TrainState,
    abstract_constants,
    abstract_state,
    init_constants,
    init_state,
    with_weights,
)

ADAPTERS = "adapters/"  # this stands before the paths of adapters


class Fresh(NamedTuple):
    """The state with which a run starts.

    missing: parameters that `train.init_from` lacks, such as a new head. They keep their initial
        values.
    grown: tables with more rows than in the source, as (path, rows there, rows here).
    places: the constants that lie in another run, and where.
    """

    state: TrainState
    constants: params.Tree
    missing: list[str]
    grown: list[tuple[str, int, int]] = []  # noqa: RUF012 - never mutated
    places: dict[str, Place] = {}  # noqa: RUF012


class Origin(NamedTuple):
    """Another run from which parameters are taken.

    `which` is the chosen step, or "" for the newest. `field` is the config field that names the
    run.
    """

    folder: Path
    config: Config
    which: str
    field: str

    @property
    def name(self) -> str:
        return f"{self.field} = {str(self.folder)!r}"

    @property
    def said(self) -> str:
        """The field and its value as the user wrote them."""
        return f"{self.field} = {(f'{self.folder}@{self.which}' if self.which else str(self.folder))!r}"

    @property
    def step(self) -> int:
        found = kept.find(self.folder, self.config.checkpoint, self.which, self.said)
        return leaves.newest((self.folder / "checkpoints").absolute()) if found is None else found


class Taken(NamedTuple):
    """The values and places of constants that a run takes from another, by this run's paths."""

    values: dict[str, Any]
    places: dict[str, Place]


def open_origin(source: str, name: str) -> Origin:
    """Opens the run that the config field `name` gives as FOLDER, FOLDER@STEP or FOLDER@best."""
    other, which = kept.split(source)
    if not (other / "config.json").is_file():
        raise ValueError(f"{name} = {str(other)!r} is not a run's folder; `import` makes one of published weights")
    if not mirror.origin(other / "checkpoints").is_dir():
        raise ValueError(f"{name} = {str(other)!r} holds no checkpoints; train it first")
    return Origin(other, run_folder.load(other, runs_code=False), which, name)


def fresh_state(config: Config, mesh) -> Fresh:
    """The state and constants with which a run starts.

    With `train.init_state` "all" the state and its step are those of `train.init_from`. Raises
    ValueError where shapes differ or nothing fits.
    """
    spec = params.paths(config.make_model().spec)
    branches = config.objective.sources()
    taken = _of_sources(config, mesh, spec)
    if not config.train.init_from:
        return _filled(config, mesh, None, taken, [])
    origin = open_origin(config.train.init_from, "train.init_from")
    mine = {path for path in spec if path.split("/")[0] not in branches}
    state = _forked(origin, config, mesh) if config.train.init_state == "all" else None
    if state is not None:
        mine = {path for path in mine if spec[path].kind == "constant"}
    found = _take(origin, config, mesh, mine)
    missing = [path for path in spec if path in mine - found.values.keys() - found.places.keys()]
    if state is None and len(missing) == len(mine):
        raise ValueError(f"{origin.name} holds no parameter of this model")
    return _filled(config, mesh, state, _both(taken, found), missing)


def _of_sources(config: Config, mesh, spec: Mapping[str, params.Param]) -> Taken:
    """Takes the objective's own parameters, such as a teacher's, from their runs."""
    taken = Taken({}, {})
    for branch, source in config.objective.sources().items():
        origin = open_origin(source, f"objective.sources: {branch}")
        mine = {path for path in spec if path.startswith(f"{branch}/")}
        found = _take(origin, config, mesh, mine, f"{branch}/")
        if lacking := mine - found.values.keys() - found.places.keys():
            raise ValueError(f"{origin.name} holds no {min(lacking).removeprefix(f'{branch}/')}")
        taken = _both(taken, found)
    return taken


def _both(one: Taken, other: Taken) -> Taken:
    return Taken(one.values | other.values, one.places | other.places)


def _filled(config: Config, mesh, state: TrainState | None, taken: Taken, missing: list[str]) -> Fresh:
    """Initial values, replaced by values of other runs where those give them."""
    spec, published = params.paths(config.make_model().spec), tables.published(config)
    grown = [
        (path, have, n)
        for path, shape in _shapes(taken).items()
        for have, n in zip(shape, published[path], strict=True)
        if have < n
    ]
    values = {path: tables.resized(x, published[path], spec[path]) for path, x in taken.values.items()}
    state = init_state(config, mesh) if state is None else state
    if any(spec[path].kind != "constant" for path in values):
        state = with_weights(config, state, _put(spec, state.params, values), _put(spec, state.frozen, values))
    wanted = params.paths(abstract_constants(config, mesh))
    fixed = {path: tables.stored(spec[path], values[path], x) for path, x in wanted.items() if path in values}
    fixed |= constants.read(config, mesh, taken.places)
    if rest := wanted.keys() - fixed.keys():
        fixed |= params.paths(init_constants(config, mesh, rest))
    return Fresh(state, params.from_paths(fixed), missing, grown, taken.places)


def _put(spec: Mapping[str, params.Param], own: params.Tree, values: Mapping[str, Any]) -> params.Tree:
    """The tree `own` with `values` in place of its leaves."""
    flat = params.paths(own)
    return params.from_paths(
        {path: tables.stored(spec[path], values[path], x) if path in values else x for path, x in flat.items()}
    )


def _shapes(taken: Taken) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in (taken.values | taken.places).items()}


class Match(NamedTuple):
    """A parameter that both runs have.

    `name` is its path in the other run, `shape` the part that is taken. `other` is True if the
    shapes differ.
    """

    name: str
    shape: tuple[int, ...]
    other: bool


def _take(origin: Origin, config: Config, mesh, mine: set[str], prefix: str = "") -> Taken:
    """Takes the parameters `mine` from another run. Their paths there have no `prefix`."""
    spec = params.paths(config.make_model().spec)
    merges = _merges(origin, spec, prefix)
    found = _matches(origin, config, mine, prefix, merges)
    step = origin.step
    lie = constants.places(origin.config, origin.folder, step)
    # Constants in another run stay there. Only their places are noted.
    referred = {path for path, m in found.items() if spec[path].kind == "constant" and m.name in lie and not merges}
    values, wanted = {}, {path: match for path, match in found.items() if path not in referred}
    if wanted:
        names, other = {match.name for match in wanted.values()}, any(match.other for match in wanted.values())
        there, at = _values(origin, config, mesh, names, whole_tables=other, merges=merges)
        values = {path: _cut(there[match.name], match.shape) for path, match in wanted.items()}
        lie = lie if at == step else constants.places(origin.config, origin.folder, at)
    # `found` has the model's order of paths, which all processes share. A set's order may differ.
    refer = {path: lie[m.name]._replace(shape=m.shape) for path, m in found.items() if path in referred}
    return Taken(values, refer)


def _matches(origin: Origin, config: Config, mine: set[str], prefix: str, merges: bool) -> dict[str, Match]:
    """The parameters that both runs have, by their paths here. Raises ValueError for
    other shapes.
    """
    spec, own = params.paths(config.make_model().spec), tables.published(config)
    described = dataclasses.replace(origin.config, adapters=AdapterConfig()) if merges else origin.config
    theirs, shapes = params.paths(described.make_model().spec), tables.published(described)
    found, wrong = {}, []
    for path, p in spec.items():
        name = path.removeprefix(prefix)
        if path not in mine or name not in theirs:
            continue
        same = theirs[name].shape == p.shape
        if not same and not tables.fits(shapes[name], own[path], p):
            wrong.append(f"{path} {theirs[name].shape}, here {p.shape}")
        # If both tables have the same number of rows, the padding rows after the vocabulary are
        # taken as well.
        whole = same and (prefix or shapes[name] == own[path])
        found[path] = Match(name, p.shape if whole else shapes[name], not same)
    if wrong:
        raise ValueError(f"{origin.name} holds other shapes: {', '.join(wrong[:3])}")
    return found


def _merges(origin: Origin, spec: Mapping[str, params.Param], prefix: str) -> bool:
    """Whether the other run's adapters are merged into its weights, because this run wants none.

    Raises ValueError where this run has no place for some of them.
    """
    theirs = {p for p in params.paths(origin.config.make_model().spec) if p.startswith(ADAPTERS)}
    if prefix or not any(path.startswith(ADAPTERS) for path in spec):
        return bool(theirs)
    if lacking := sorted(theirs - spec.keys()):
        raise ValueError(
            f"{origin.name} holds {lacking[0]}, which this run lacks; give this run the same adapters, or merge them "
            "into their base first: by a run without adapters that starts from there, or by `export` and `import`"
        )
    return False


def _cut(x: Any, shape: tuple[int, ...]) -> Any:
    return x if isinstance(x, Blocked) else x[tuple(map(slice, shape))]


def _values(
    origin: Origin, config: Config, mesh, names: set[str], *, whole_tables: bool, merges: bool
) -> tuple[dict[str, Any], int]:
    """The other run's weights by path, on this run's mesh, and their step.

    The run's constants are read only if `names` contains a constant, or if `merges` merges the
    run's adapters. `whole_tables` keeps the vocabulary unsharded, because a vocabulary of another
    size has other shards.
    """
    parallel = config.parallel
    if whole_tables:
        parallel = dataclasses.replace(parallel, rules=dataclasses.replace(parallel.rules, vocab=None))
    source = dataclasses.replace(origin.config, parallel=parallel)
    spec = params.paths(source.make_model().spec)
    fixed = any(spec[name].kind == "constant" for name in names) or merges
    tree, step = load_weights(source, origin.folder, mesh, origin.which, origin.said, fixed=fixed)
    return params.paths(merged(source, tree, mesh) if merges else tree), step


def _forked(origin: Origin, config: Config, mesh) -> TrainState:
    """The whole state of one checkpoint.

    If this run keeps an average of the weights and the other does not, the average begins at the
    restored weights.

    Raises ValueError where the optimizer's state does not fit, or where `train.steps` leaves
    nothing to train.
    """
    source = origin.config
    abstract = abstract_state(config, mesh)
    names = ["step", "params", "frozen", "opt_state", *(["ema"] if source.optim.ema_decay else [])]
    names += ["recent"] if _same_window(source, config) else []
    fields = {name: getattr(abstract, name) for name in names}
    step = kept.find(origin.folder, source.checkpoint, origin.which, origin.said)
    try:
        with store.open_store(origin.folder / "checkpoints", source.checkpoint) as saves:
            found = store.restore_params(saves, fields, step, constants.repeated(config))
    except ValueError as error:
        raise ValueError(f"train.init_state = 'all': {error}; 'weights' takes the weights alone") from error
    if int(found["step"]) >= config.train.steps:
        raise ValueError(
            f"train.steps = {config.train.steps} is not above step {int(found['step'])}, where {config.train.init_from} "
            "stands; train.init_state = 'all' continues from that step"
        )
    ema = found.get("ema")
    if config.optim.ema_decay and ema is None:
        # This is a copy, because a step must not donate the same buffer twice.
        ema = jax.tree.map(jnp.copy, cast(found["params"], "float32"))
    recent = found.get("recent", jax.device_put(spikes.fresh(config.train.spikes), sharding.replicated(mesh)))
    return TrainState(**(found | {"ema": ema if config.optim.ema_decay else None, "recent": recent}))


def _same_window(*configs: Config) -> bool:
    """Whether all configs keep the same window of recent losses for spikes."""
    kept = [config.train.spikes for config in configs]
    return all(spike.action != "off" and spike.window == kept[0].window for spike in kept)
