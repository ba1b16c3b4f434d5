"""What is known of one input of a run, as a page shows it."""

import dataclasses

import numpy as np

from bigmodel_jax.explain.arrays import ArrayExplanation
from bigmodel_jax.explain.texts import TextExplanation


@dataclasses.dataclass(frozen=True)
class Explained:
    """title, against: what was given; names: of a row's columns; shown: a picture (H, W, C) in 0 .. 1, or a row (F,) in its
    own units; truth: the label of a row of the validation split; unit, mean: what turn a predicted number into its own
    unit; kind: the model's."""

    result: TextExplanation | ArrayExplanation
    title: str = ""
    against: str = ""
    names: tuple[str, ...] = ()
    shown: np.ndarray | None = None
    truth: str = ""
    unit: float = 1.0
    mean: float = 0.0
    kind: str = ""
    step: int = 0
