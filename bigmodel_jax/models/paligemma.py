"""PaliGemma: a Gemma that reads SigLIP's image states, with bidirectional attention in the prompt.

Beyer et al., arXiv:2407.07726.
"""

import dataclasses
from typing import Literal

from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.models import gemma, siglip
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.gemma import GemmaConfig
from bigmodel_jax.models.vision_language import VisionLanguageConfig

VISION = VisionTower(image_shape=(224, 224, 3), patch_size=14, **siglip.SO400M)


@dataclasses.dataclass(frozen=True)
class PaliGemmaConfig(VisionLanguageConfig):
    """PaliGemma (arXiv:2407.07726); defaults: PaliGemma 3B at 224 pixels.

    The reference implementation is transformers' `PaliGemmaForConditionalGeneration`. The fields
    are those of `VisionLanguageConfig`.
    """

    vision: VisionTower = VISION
    text: GemmaConfig = dataclasses.replace(gemma.PRESETS["gemma-2b"], vocab_size=257_216)
    tower: Literal["clip", "siglip"] = "siglip"
    connector: Literal["linear", "mlp"] = "linear"
    prefix_mask: bool = True
    image_token_id: CountOrZero = 257_152

    @classmethod
    def tiny(cls) -> "PaliGemmaConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, **siglip.SIZES}
        tower = VisionTower(image_shape=(8, 8, 3), patch_size=4, **sizes)
        return cls(vision=tower, text=GemmaConfig.tiny(), image_token_id=63)


def at(side: int) -> PaliGemmaConfig:
    """The 3B model for images of `side` x `side` pixels."""
    return PaliGemmaConfig(vision=dataclasses.replace(VISION, image_shape=(side, side, 3)))


PRESETS = {"paligemma-3b-224": at(224), "paligemma-3b-448": at(448), "paligemma-3b-896": at(896)}
