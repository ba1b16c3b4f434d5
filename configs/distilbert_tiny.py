"""The small BERT of bert_tiny as a DistilBERT, without token types.

Cost: that of bert_tiny, about a minute of processor time. Its accuracy has not been measured.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models import DistilBertConfig
from configs import bert_tiny


def get_config() -> Config:
    base = bert_tiny.get_config()
    return dataclasses.replace(base, model=DistilBertConfig(**vars(base.model) | {"num_token_types": 0}))
