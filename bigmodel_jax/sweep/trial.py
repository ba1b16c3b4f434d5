"""One trial of a sweep: an ordinary run whose evaluations are reported to the study."""

import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from bigmodel_jax.sweep import space as spaces
from bigmodel_jax.sweep import study as studies
from bigmodel_jax.sweep.definition import Sweep
from bigmodel_jax.sweep.one_run import trained
from bigmodel_jax.training.shared_programs import OwnPrograms

STARTS, SECONDS, PRUNED = "starts", "seconds", "pruned"  # attributes of a trial in the study
MOST_STARTS = 3  # most starts of a trial whose process dies each time before it saves


def attempt(sweep: Sweep, trial: optuna.Trial, programs: OwnPrograms) -> tuple[TrialState, float | None, str]:
    """(state of the trial, its value, the reason if it failed).

    Signals and errors from outside the run are raised.
    """
    folder, began = sweep.folder(trial.number), time.monotonic()
    if reason := _given_up(trial, folder):
        return TrialState.FAIL, None, reason
    if trial.user_attrs.get(PRUNED):  # the trial's process died before it told the study
        return TrialState.PRUNED, None, ""
    judge = _Judge(trial, sweep.search.metric)
    try:
        config = spaces.configured(sweep.config, studies.values_of(sweep.space, trial.params))
    except ValueError as error:  # each field is in its range, but the combination is not valid
        return TrialState.FAIL, None, str(error)
    try:
        value, reason = trained(config, folder, sweep.search.metric, programs, judge=judge, source=sweep.source)
    finally:
        spent = trial.user_attrs.get(SECONDS, 0.0) + time.monotonic() - began
        trial.set_user_attr(SECONDS, round(spent, 2))
    if judge.pruned:
        return TrialState.PRUNED, None, ""
    return (TrialState.FAIL, None, reason) if reason else (TrialState.COMPLETE, value, "")


class _Judge:
    """Reports each evaluation to the study, and tells the run if the study prunes it."""

    def __init__(self, trial: optuna.Trial, metric: str):
        self._trial, self._metric, self.pruned = trial, metric, False
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        self._last_known = max(known, default=-1)

    def __call__(self, step: int, scalars: dict[str, float], last: bool) -> str:
        value = scalars.get(self._metric)
        if value is None:
            numbers = ", ".join(name for name, found in scalars.items() if isinstance(found, float))
            raise ValueError(f"--metric {self._metric}: the evaluation has no such number; it has: {numbers}")
        # A resumed run repeats the evaluations since its last checkpoint.
        if step > self._last_known:
            self._trial.report(float(value), step)
        # Pruning a run at its end would save nothing.
        if not last and step >= self._last_known and self._trial.should_prune():
            self._trial.set_user_attr(PRUNED, True)
            self.pruned = True
        return "pruned by the sweep" if self.pruned else ""


def _given_up(trial: optuna.Trial, folder: Path) -> str:
    """Why a trial is not started again, or "".

    Its process was killed several times at the same step, for example by a lack of memory.
    """
    saves = [int(p.name) for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdecimal()]
    starts = [*trial.user_attrs.get(STARTS, []), max(saves, default=0)]
    trial.set_user_attr(STARTS, starts)
    if len(starts) <= MOST_STARTS or len(set(starts[-MOST_STARTS - 1 :])) > 1:
        return ""
    return f"its process died {MOST_STARTS} times after step {starts[-1]}, before it had saved anything more"
