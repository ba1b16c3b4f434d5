"""Converts `train.epochs` to optimizer steps. All other code uses only `train.steps`."""

import dataclasses
import fractions
import logging
import math

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import check_duration

log = logging.getLogger("bigmodel_jax")


def resolve(config: Config, num_rows: int | None = None) -> Config:
    """`config` with `train.steps` set from `train.epochs`, rounded up to whole batches.

    `num_rows` is the number of training rows. Without it the split is opened. Each epoch has its
    own permutation of the rows, and the next epoch's rows fill the last batch of an epoch
    (data/shuffle.py).
    """
    train = config.train
    if train.epochs is None:
        return config
    check_duration(config)
    num_rows = len(config.data.open("train")) if num_rows is None else num_rows
    # Uses the decimal number as written: 0.1 * 30 / 3 is above 1 in binary floats.
    steps = math.ceil(fractions.Fraction(repr(train.epochs)) * num_rows / train.batch_size)
    resolved = dataclasses.replace(config, train=dataclasses.replace(train, steps=steps, epochs=None))
    check_duration(resolved)
    log.info("%g epochs of %d rows are %d steps of %d rows", train.epochs, num_rows, steps, train.batch_size)
    return resolved
