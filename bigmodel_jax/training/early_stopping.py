"""Early stopping: ends a run after `eval.patience` evaluations in a row without improvement."""

import dataclasses
import math
from collections.abc import Callable

from bigmodel_jax.config import Config

# A function (step, scalars of its evaluation, whether it is the last step) that returns why the run
# ends there, or "".
Judge = Callable[[int, dict[str, float], bool], str]
KEY = "early_stopping"  # the key in the data state of a checkpoint


@dataclasses.dataclass
class Patience:
    """The record of the evaluations so far. It is equal in all processes, and every save holds it.

    `metric` and `mode` are `checkpoint.best_metric` and `best_mode`. `limit` is `eval.patience`; 0
    = the run never stops early.
    """

    metric: str
    mode: str
    limit: int
    best: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations since the best one

    @classmethod
    def of(cls, config: Config) -> "Patience":
        return cls(config.checkpoint.best_metric, config.checkpoint.best_mode, config.eval.patience)

    @property
    def is_over(self) -> bool:
        return 0 < self.limit <= self.worse

    def see(self, step: int, scalars: dict[str, float]) -> bool:
        """Counts an evaluation. Returns whether it is the best so far, which the run then saves.

        A NaN is never better.
        """
        if not self.limit:
            return False
        value = scalars.get(self.metric, math.nan)
        sign = 1 if self.mode == "max" else -1
        if math.isnan(value) or (self.best is not None and sign * value <= sign * self.best):
            self.worse += 1
            return False
        self.best, self.best_step, self.worse = value, step, 0
        return True

    def get_state(self) -> dict:
        """What a checkpoint stores. It stores nothing if the run never stops early."""
        state = {name: value for name, value in dataclasses.asdict(self).items() if name != "limit"}
        return {KEY: state} if self.limit else {}

    def set_state(self, data_state: dict) -> None:
        """Restores the record from a checkpoint, unless that record is of another metric."""
        found = data_state.get(KEY, {})
        if self.limit and (found.get("metric"), found.get("mode")) == (self.metric, self.mode):
            self.best, self.best_step, self.worse = found["best"], found["best_step"], found["worse"]

    def why(self) -> str:
        best = "no number yet" if self.best is None else f"{self.best:.4g} at step {self.best_step:,}"
        return (
            f"{self.metric} has not been better than {best} for {self.worse} evaluations (eval.patience = {self.limit})"
        )
