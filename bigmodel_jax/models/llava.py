"""LLaVA: a Llama that reads CLIP's image states through an MLP.

Liu et al., arXiv:2304.08485; LLaVA 1.5: arXiv:2310.03744.
"""

import dataclasses

from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.models import llama
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.vision_language import VisionLanguageConfig

VISION = VisionTower(
    image_shape=(336, 336, 3), patch_size=14, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096
)


@dataclasses.dataclass(frozen=True)
class LlavaConfig(VisionLanguageConfig):
    """LLaVA 1.5 (arXiv:2310.03744): CLIP's tower, an MLP and a Llama; defaults: LLaVA 1.5 7B.

    The reference implementation is transformers' `LlavaForConditionalGeneration`. The fields are
    those of `VisionLanguageConfig`.
    """

    vision: VisionTower = VISION
    text: LlamaConfig = LlamaConfig(vocab_size=32_064)
    feature_layer: int = -2
    image_token_id: CountOrZero = 32_000

    @classmethod
    def tiny(cls) -> "LlavaConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64}
        tower = VisionTower(image_shape=(8, 8, 3), patch_size=4, **sizes)
        return cls(vision=tower, text=LlamaConfig.tiny(), feature_layer=-1, image_token_id=63)


PRESETS = {
    "llava-1.5-7b": LlavaConfig(),
    "llava-1.5-13b": LlavaConfig(text=dataclasses.replace(llama.PRESETS["llama-2-13b"], vocab_size=32_064)),
}
