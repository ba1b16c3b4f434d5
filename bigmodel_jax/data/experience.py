"""Where a training run takes its batches from: rows in an order that is known, or whatever is made as the weights go."""

from pathlib import Path
from typing import Any, Protocol

import jax

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.data.base import Rows


def phase_of(batches: "Experience") -> str:
    """ "data", what one waits for, or "rollout", where the weights make the batch; without a `phase` it is the first."""
    return getattr(batches, "phase", "data")


class Experience(Protocol):
    """Batches for the loop, which asks for the next one with the state that the next step starts from.

    rows: of the training split, or the prompts of rollouts: `train.epochs` counts passes over them. One may have a
    `phase`: what the time of `next` is in the split of a run's wall time (`phase_of`).
    """

    rows: Rows

    def enter(self, run_dir: Path, constants: Any) -> None:
        """Called once, before the first `next`: the run's folder, and the parameters that are no part of its state."""
        ...

    def next(self, state: Any) -> dict[str, jax.Array]:
        """The next global batch. state: the TrainState, which the step is going to be given, and donated: keep none of it."""
        ...

    def prefetch(self) -> None:
        """Called while the step before is on its way: begins with what may be prepared without its weights."""
        ...

    def wait(self, seconds: float) -> bool:
        """Whether what is prepared ahead is there, after so many seconds at most; True where nothing is."""
        ...

    def measured(self) -> dict[str, Mean]:
        """What the run records of the batch that `next` gave last, beside what its step returns."""
        ...

    def position(self) -> dict[str, Any]:
        """All that `seek` needs to go on from here, as JSON: it is saved with each checkpoint."""
        ...

    def seek(self, step: int, position: dict[str, Any] | None = None) -> None:
        """Stands where `position` was said, at `step`; None: where a run stands that begins at that step."""
        ...
