"""BART: the original Transformer with learned positions and a norm after the embeddings.

Lewis et al., arXiv:1910.13461. The layers are those of transformer.py. Each side has a position
table whose first two rows are never read, and a LayerNorm of its embeddings. The bias of the logits
is a constant, as in the reference, whose training does not change it. Every text of either side
begins with one token, "<s>", which generation may be told to put first.
"""

import dataclasses
from typing import ClassVar

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth
from bigmodel_jax.models import encoder_decoder
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.sizes import AtMost, Divides
from bigmodel_jax.models.transformer import TransformerConfig
from bigmodel_jax.nn.activations import Activation


@dataclasses.dataclass(frozen=True)
class BartConfig(TransformerConfig):
    """BART (Lewis et al., arXiv:1910.13461); defaults: bart-large.

    The reference implementation is transformers' `BartForConditionalGeneration`. The other fields
    are those of `TransformerConfig`.
    """

    vocab_size: Count = 50_265
    num_layers: Depth = 12
    num_decoder_layers: Depth = 12
    embed_dim: Count = 1024
    num_heads: Count = 16
    mlp_dim: Count = 4096
    activation: Activation = "gelu"
    scale_embedding: bool = False
    logits_bias: bool = True
    decoder_start_token_id: CountOrZero = 2
    eos_token_id: CountOrZero = 2
    bos_token_id: CountOrZero = 0  # token that texts begin with, after decoder_start_token_id in the decoder
    text_bos: bool = True  # whether the texts of both sides begin with bos_token_id; the data must do the same
    forced_bos: bool = True  # whether generation puts bos_token_id first, whatever the logits say

    SIZES: ClassVar[tuple] = (
        Divides("num_heads", "embed_dim"),
        *encoder_decoder.SIZES,
        AtMost("bos_token_id", "vocab_size", below=True),
    )
    LEARNED: ClassVar[bool] = True
    FIRST_POSITION: ClassVar[int] = 2
    BIAS_KIND: ClassVar[params.Kind] = "constant"

    def make(self) -> Model:
        begin = self.bos_token_id if self.text_bos else None
        return super().make()._replace(encoder_start=begin, forced_start=self.bos_token_id if self.forced_bos else None)

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.forced_bos and not self.text_bos:
            raise ValueError(
                "model.forced_bos = True needs model.text_bos = True: texts must begin with the forced token"
            )


PRESETS = {
    "bart-base": BartConfig(num_layers=6, num_decoder_layers=6, embed_dim=768, num_heads=12, mlp_dim=3072),
    "bart-large": BartConfig(),
}
