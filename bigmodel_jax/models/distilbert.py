"""DistilBERT: a BERT of half the layers, without token types and next sentences, taught by the whole (arXiv:1910.01108)."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from bigmodel_jax.core.ranges import CountOrZero, Depth
from bigmodel_jax.models.bert import BertConfig


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """Defaults: distilbert-base-uncased. Its pooler stands in the classification head, before the classes."""

    num_layers: Depth = 6
    num_token_types: CountOrZero = 0  # a batch's token_types are read where there is a table for them

    POOLED: ClassVar[tuple[str, ...]] = ("classification",)
    POOLER: ClassVar[Callable] = jax.nn.relu

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.head == "pretraining":
            raise ValueError("model.head = 'pretraining'; DistilBERT is pretrained with 'masked_lm' alone")


PRESETS = {
    "distilbert-base-uncased": DistilBertConfig(),
    "distilbert-base-cased": DistilBertConfig(vocab_size=28_996),
    "distilbert-base-multilingual-cased": DistilBertConfig(vocab_size=119_547),
}
