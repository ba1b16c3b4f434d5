"""RoBERTa: BERT without next sentence prediction and token types, on byte-level BPE.

Liu et al., arXiv:1907.11692.
"""

import dataclasses

from bigmodel_jax.core.ranges import Count, NonNegative
from bigmodel_jax.models.bert import BertConfig


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """RoBERTa (Liu et al., arXiv:1907.11692); defaults: roberta-base.

    The reference implementation is transformers' `RobertaForMaskedLM` and its siblings. The
    classification head holds the pooler. The fields are those of `BertConfig`.
    """

    vocab_size: Count = 50_265
    num_token_types: Count = 1
    norm_eps: NonNegative = 1e-5

    @property
    def first_position(self) -> int:
        """Rows 0 and 1 of the position table belong to padding, whose token id is 1."""
        return 2

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.head == "pretraining":
            raise ValueError("model.head = 'pretraining'; RoBERTa is pretrained with 'masked_lm' alone")


PRESETS = {
    "roberta-base": RobertaConfig(),
    "roberta-large": RobertaConfig(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
}
