"""The study of a sweep: its trials, stored on disk by Optuna.

Any process may end, and the sweep can be continued. Every value is drawn by a fresh sampler whose
seed depends only on (the sweep's seed, the trial's number, the field). So a sweep with one trial at
a time draws the same values after a kill as without one.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from bigmodel_jax.sweep.space import Choice, Dimension, Floats, Space

NAME = "sweep"
DEFINITION = "definition"
FILES = {"journal": "study.journal", "sqlite": "study.db"}
BUSY_SECONDS = 20.0  # seconds to wait for other processes that write to an SQLite file
Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "asha"]


@dataclasses.dataclass(frozen=True)
class Search:
    """How a study is searched.

    metric: key of an evaluated metric. direction: whether less or more is better. sampler: how
    values are drawn. pruner: how bad trials are stopped early. seed: the sampler's seed.
    first_rung: steps after which ASHA first compares trials. several: whether trials run in
    parallel.
    """

    metric: str
    direction: Literal["minimize", "maximize"]
    sampler: Sampler = "tpe"
    pruner: Pruner = "none"
    seed: int = 0
    first_rung: int = 1  # steps after which ASHA compares for the first time
    several: bool = False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A block that only one process at a time may enter.

    The kernel releases the lock when the process ends.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


class _Lock:
    """The lock that Optuna needs for its journal.

    Optuna's own locks stay for half a minute after a process is killed.
    """

    def __init__(self, path: Path):
        self._path, self._held = path.with_name(f"{path.name}.lock"), None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(self._path))
        return True

    def release(self) -> None:
        """Release the lock."""
        self._held.close()


def open_study(run_dir: Path, kind: str, search: Search, definition: dict[str, str]) -> optuna.Study:
    """Open the study in a sweep's folder, or create it.

    Raises ValueError if it is locked, damaged, or belongs to another sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = run_dir / FILES[kind]
    for other in FILES.keys() - {kind}:
        if (run_dir / FILES[other]).exists():
            raise ValueError(f"--storage {kind}: {run_dir / FILES[other]} is the study; --storage {other} continues it")
    try:
        storage = _storage(path, kind)
        names = [study.study_name for study in storage.get_all_studies()]
        if names not in ([], [NAME]):
            raise ValueError(f"{path} holds the study {names[0]!r}, which is not a sweep; give another --run_dir")
        study = _loaded(storage, search)
        if study.direction.name.lower() != search.direction and not study.trials:
            # The direction of a study is fixed. A start that made no trial may have left another.
            optuna.delete_study(study_name=NAME, storage=storage)
            study = _loaded(storage, search)
        _check_same(study, definition, path)
    except ValueError:  # also a json error: the file is not a journal
        raise
    except Exception as error:  # errors of SQLAlchemy and SQLite, raised through Optuna
        reason = str(getattr(error.__cause__, "orig", None) or error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{path} cannot be opened: {reason}; is another process using it?") from error
    return study


def _loaded(storage: optuna.storages.BaseStorage, search: Search) -> optuna.Study:
    how = {"direction": search.direction, "pruner": _pruner(search)}
    return optuna.create_study(study_name=NAME, storage=storage, load_if_exists=True, **how)


def _storage(path: Path, kind: str) -> optuna.storages.BaseStorage:
    if kind == "sqlite":
        return RDBStorage(f"sqlite:///{path.absolute()}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
    lock = _Lock(path)
    # An incomplete line may be cut only while no other process writes.
    with locked(path.with_name(f"{path.name}.lock")):
        _cut_torn_line(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is not the journal of a study ({error}); give another --run_dir") from error


def _cut_torn_line(path: Path) -> None:
    """Delete an incomplete last line that a killed process has left.

    Optuna would append to it, and could not read any further.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _check_same(study: optuna.Study, definition: dict[str, str], path: Path) -> None:
    before = study.user_attrs.get(DEFINITION)
    if not study.trials:  # a sweep that failed before its first trial may be redefined
        return study.set_user_attr(DEFINITION, definition)
    if before is None:
        raise ValueError(f"{path} holds a study that no sweep has made; give another --run_dir")
    names = before | definition
    changed = {n: (before.get(n), definition.get(n)) for n in names if before.get(n) != definition.get(n)}
    if changed:
        shown = "; ".join(f"{name} was {a}, now {b}" for name, (a, b) in list(changed.items())[:4])
        raise ValueError(f"{path} holds another sweep: {shown}; give another --run_dir")


# ------------------------------------------------------------ values


def take(study: optuna.Study, space: Space, search: Search, running: FrozenTrial | None = None) -> optuna.Trial:
    """A new trial with a value for every field, or the trial `running` with its missing values
    drawn.

    Only one process at a time may call this.
    """
    number = running.number if running else len(study.get_trials(deepcopy=False))
    # `ask` draws nothing, so this sampler is only a placeholder. Below, each field gets a sampler
    # of its own.
    study.sampler = _sampler(search, number, "")
    # Optuna offers no public way to continue a running trial, and a FrozenTrial has no public id.
    trial = optuna.Trial(study, running._trial_id) if running else study.ask()
    for name, dimension in space.items():
        study.sampler = _sampler(search, number, name)
        _suggest(trial, name, dimension)
    return trial


def values_of(space: Space, labels: dict[str, Any]) -> dict[str, Any]:
    """A trial's parameters, as values of the fields."""
    return {name: _value(space[name], label) for name, label in labels.items()}


def _value(dimension: Dimension, label: Any) -> Any:
    return dimension.values[dimension.labels.index(label)] if isinstance(dimension, Choice) else label


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> None:
    match dimension:
        case Floats(low, high, log):
            trial.suggest_float(name, low, high, log=log)
        case Choice():
            trial.suggest_categorical(name, dimension.labels)
        case _:
            trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step)


def _sampler(search: Search, number: int, name: str) -> optuna.samplers.BaseSampler:
    # With a seed of its own for each trial and field, values do not depend on the order in which
    # the fields are drawn.
    digest = hashlib.sha256(f"{search.seed}/{number}/{name}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    if search.sampler == "tpe":
        # constant_liar makes parallel trials avoid the values of trials that still run.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=search.several)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "median":
        return optuna.pruners.MedianPruner()
    if search.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=search.first_rung)
    return optuna.pruners.NopPruner()


def importance(study: optuna.Study) -> dict[str, float]:
    """Each field's share in the spread of the metric, by PED-ANOVA; empty below 4 trials.

    Source: arXiv:2304.10255.
    """
    done = [t for t in study.trials if t.state is TrialState.COMPLETE]
    if len(done) < 4 or len({t.value for t in done}) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study))
