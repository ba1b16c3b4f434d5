"""`train.epochs` as optimizer steps: the rest of the program knows `train.steps` alone."""

import dataclasses
import fractions
import logging
import math

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import check_duration

log = logging.getLogger("bigmodel_jax")


def resolve(config: Config, num_rows: int | None = None) -> Config:
    """`config` with `train.steps` in place of `train.epochs`: the fewest batches that hold so many passes over the rows.

    num_rows: of the training split, which is opened where they are not given. The order of rows is a permutation per
    epoch, and the last batch of an epoch is filled up with rows of the next one (data/shuffle.py).
    """
    train = config.train
    if train.epochs is None:
        return config
    check_duration(config)
    num_rows = len(config.data.open("train")) if num_rows is None else num_rows
    # The decimal number that the user wrote: 0.1 * 30 / 3 in binary floats is above 1.
    steps = math.ceil(fractions.Fraction(repr(train.epochs)) * num_rows / train.batch_size)
    resolved = dataclasses.replace(config, train=dataclasses.replace(train, steps=steps, epochs=None))
    check_duration(resolved)
    log.info("%g epochs of %d rows are %d steps of %d rows", train.epochs, num_rows, steps, train.batch_size)
    return resolved
