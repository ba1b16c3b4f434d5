"""DistilBERT: a BERT of half the depth, without token types and next sentence prediction.

Sanh et al., arXiv:1910.01108.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from bigmodel_jax.core.ranges import CountOrZero, Depth
from bigmodel_jax.models.bert import BertConfig


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """A BERT of six layers that was distilled from the full one (Sanh et al., arXiv:1910.01108).

    The reference implementation is transformers' `DistilBertForMaskedLM` and its siblings. The
    defaults are those of distilbert-base-uncased. The classification head holds the pooler. The
    other fields are those of `BertConfig`.
    """

    num_layers: Depth = 6
    num_token_types: CountOrZero = 0  # rows of the token type table; 0 = a batch's token_types are not read

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
