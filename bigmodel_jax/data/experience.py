"""The interface of training batches: rows in a fixed order, or made from current weights."""

import base64
import io
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.data.base import Rows


def phase_of(batches: "Experience") -> str:
    """Return the `phase` of batches, which is "data" by default.

    "data" means that the loop waits for data. "rollout" means that the weights generate the batch.
    """
    return getattr(batches, "phase", "data")


class Experience(Protocol):
    """A source of training batches. The loop passes the train state before each step, and gets a
    batch.

    - rows: the rows of the training split, or the prompts of rollouts. `train.epochs` counts passes
      over them.
    - phase (optional): the name under which the time of `next` counts in a run's wall time. See
      `phase_of`.
    """

    rows: Rows

    def enter(self, run_dir: Path, constants: Any) -> None:
        """Receive the run's folder, and the constants: parameters that are not part of the train
        state.

        It is called once, before the first `next`.
        """
        ...

    def next(self, state: Any) -> dict[str, jax.Array]:
        """Return the next global batch.

        `state` is the TrainState that the step will receive. The step donates its buffers, so
        nothing of it may be kept.
        """
        ...

    def prefetch(self) -> None:
        """Prepare the part of the next batch that needs no new weights, while the previous step
        runs.
        """
        ...

    def wait(self, seconds: float) -> bool:
        """Wait for prepared data for at most this many seconds, and tell whether it is ready.

        A source that prepares no data in advance returns True at once.
        """
        ...

    def measured(self) -> dict[str, Mean]:
        """Return the metrics of the last batch that `next` gave. The run records them."""
        ...

    def position(self) -> dict[str, Any]:
        """Return the state that `seek` needs, as JSON. It is saved with each checkpoint."""
        ...

    def seek(self, step: int, position: dict[str, Any] | None = None) -> None:
        """Continue at `step` from a saved position; None: begin as a new run at that step."""
        ...


def packed(arrays: dict[str, np.ndarray]) -> str:
    """Return arrays as a text, without loss, for the position that a checkpoint keeps."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    # A position is stored as JSON, which cannot hold bytes.
    return base64.b64encode(out.getvalue()).decode()


def unpacked(text: str) -> dict[str, np.ndarray]:
    """Return the arrays in a text that `packed` made."""
    # Pickles are refused, because unpickling could run code of the checkpoint's author.
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return dict(arrays)
