"""Idefics3 and SmolVLM: a Llama that reads tiles of an image, with squares of patches as one token.

arXiv:2408.12637 and 2504.05299. The published files of the two families differ in names alone.
"""

import dataclasses
from typing import Literal

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.models import llama, siglip
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.vision_language import VisionLanguageConfig

SMOLLM2 = dataclasses.replace(llama.PRESETS["smollm2-135m"], vocab_size=49_280, tied_embeddings=False)


@dataclasses.dataclass(frozen=True)
class Idefics3Config(VisionLanguageConfig):
    """Idefics3 (arXiv:2408.12637): SigLIP, pixel shuffle, a linear map and a Llama; defaults: 8B.

    The reference implementation is transformers' `Idefics3ForConditionalGeneration`. The fields are
    those of `VisionLanguageConfig`.
    """

    vision: VisionTower = VisionTower(image_shape=(364, 364, 3), patch_size=14, **siglip.SO400M)
    text: LlamaConfig = dataclasses.replace(llama.PRESETS["llama-3.1-8b"], vocab_size=128_259)
    tower: Literal["clip", "siglip"] = "siglip"
    connector: Literal["linear", "mlp"] = "linear"
    connector_bias: bool = False
    shuffle: Count = 2
    image_token_id: CountOrZero = 128_257

    @classmethod
    def tiny(cls) -> "Idefics3Config":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, **siglip.SIZES}
        tower = VisionTower(image_shape=(16, 16, 3), patch_size=4, **sizes)
        return cls(vision=tower, text=LlamaConfig.tiny(), image_token_id=63, shuffle=2)


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig(Idefics3Config):
    """SmolVLM (arXiv:2504.05299), Idefics3's architecture around SmolLM2; defaults: SmolVLM 256M.

    The reference implementation is transformers' `SmolVLMForConditionalGeneration`.
    """

    vision: VisionTower = VisionTower(image_shape=(512, 512, 3), patch_size=16, **siglip.BASE)
    text: LlamaConfig = SMOLLM2
    shuffle: Count = 4
    image_token_id: CountOrZero = 49_190


SMOLLM2_1_7B = dataclasses.replace(
    llama.PRESETS["smollm2-1.7b"], vocab_size=49_280, max_seq_len=16_384, rope_theta=273_768.0, tied_embeddings=False
)
PRESETS = {
    "idefics3-8b": Idefics3Config(),
    "smolvlm-256m": SmolVLMConfig(),
    "smolvlm-500m": SmolVLMConfig(
        text=dataclasses.replace(llama.PRESETS["smollm2-360m"], vocab_size=49_280, tied_embeddings=False)
    ),
    "smolvlm2-2.2b": SmolVLMConfig(
        vision=VisionTower(image_shape=(384, 384, 3), patch_size=14, **siglip.SO400M), text=SMOLLM2_1_7B, shuffle=3
    ),
}
