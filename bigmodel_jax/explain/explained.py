"""The explanation of one input of a run, with the texts and units that its page shows."""

import dataclasses

import numpy as np

from bigmodel_jax.explain.arrays import ArrayExplanation
from bigmodel_jax.explain.texts import TextExplanation


@dataclasses.dataclass(frozen=True)
class Explained:
    """An explanation and what its page needs beside it.

    - result: the explanation
    - title: the text, or the name of the picture or row; against: the second text
    - names: the names of a row's columns
    - shown: a picture (H, W, C) in [0, 1], or a row (F,) in its own units
    - truth: the label, for a row of the validation split
    - unit, mean: a predicted number times unit plus mean is in its own unit
    - kind: the model's name; step: the checkpoint's step
    """

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
