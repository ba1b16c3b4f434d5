"""The small BERT of bert_tiny as a RoBERTa.

Cost: about a minute of processor time, under a minute on 2 CPU cores. It predicts 44 % of the
hidden bytes of the addresses after 2000 correctly, at 1.97 nats.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models import RobertaConfig
from configs import bert_tiny


def get_config() -> Config:
    base = bert_tiny.get_config()
    return dataclasses.replace(base, model=RobertaConfig(**vars(base.model)))
