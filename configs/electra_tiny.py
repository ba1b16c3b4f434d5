"""This config trains the small BERT of bert_tiny as ELECTRA's generator.

Its embedding table is narrower than its layers, and a dense layer projects the embeddings.

Cost: that of bert_tiny, about a minute of processor time. Its accuracy has not been measured.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models import ElectraConfig
from configs import bert_tiny


def get_config() -> Config:
    base = bert_tiny.get_config()
    return dataclasses.replace(base, model=ElectraConfig(**vars(base.model) | {"table_dim": 32}))
