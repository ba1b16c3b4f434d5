"""Imports and exports published weights: Hugging Face folders and GGUF files.

Each model family has one table that pairs the published tensor names with our parameter paths.
`FAMILIES` lists every family that can be imported and exported, by the architecture's name in
config.json.
"""

from bigmodel_jax.pretrained.autoencoder import AUTOENCODER
from bigmodel_jax.pretrained.bart import BART
from bigmodel_jax.pretrained.bert import BERT
from bigmodel_jax.pretrained.class_defaults import with_defaults
from bigmodel_jax.pretrained.clip import CLIP
from bigmodel_jax.pretrained.conformer import CONFORMER
from bigmodel_jax.pretrained.deberta import DEBERTA
from bigmodel_jax.pretrained.deepseek import DEEPSEEK_V3
from bigmodel_jax.pretrained.detr import DETR
from bigmodel_jax.pretrained.dinov2 import DINOV2
from bigmodel_jax.pretrained.distilbert import DISTILBERT
from bigmodel_jax.pretrained.dit import DIT
from bigmodel_jax.pretrained.efficientnet import EFFICIENTNET
from bigmodel_jax.pretrained.electra import ELECTRA
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_IMAGE_TEXT
from bigmodel_jax.pretrained.glm import GLM4
from bigmodel_jax.pretrained.gpt2 import GPT2
from bigmodel_jax.pretrained.gpt_oss import GPT_OSS
from bigmodel_jax.pretrained.granite import GRANITE
from bigmodel_jax.pretrained.idefics3 import IDEFICS3, SMOLVLM
from bigmodel_jax.pretrained.llama import LLAMA
from bigmodel_jax.pretrained.llava import LLAVA
from bigmodel_jax.pretrained.marian import MARIAN
from bigmodel_jax.pretrained.mistral import MISTRAL
from bigmodel_jax.pretrained.mixtral import MIXTRAL
from bigmodel_jax.pretrained.mmdit import MMDIT
from bigmodel_jax.pretrained.modernbert import MODERNBERT
from bigmodel_jax.pretrained.olmo import OLMO2, OLMO3
from bigmodel_jax.pretrained.paligemma import PALIGEMMA
from bigmodel_jax.pretrained.phi3 import PHI3
from bigmodel_jax.pretrained.pixart import PIXART
from bigmodel_jax.pretrained.qwen import QWEN2, QWEN3
from bigmodel_jax.pretrained.qwen_moe import QWEN3_MOE
from bigmodel_jax.pretrained.qwen_next import QWEN3_NEXT
from bigmodel_jax.pretrained.resnet import RESNET
from bigmodel_jax.pretrained.roberta import ROBERTA
from bigmodel_jax.pretrained.segformer import SEGFORMER
from bigmodel_jax.pretrained.siglip import SIGLIP
from bigmodel_jax.pretrained.smollm3 import SMOLLM3
from bigmodel_jax.pretrained.t5 import T5
from bigmodel_jax.pretrained.vgg import ALEXNET, VGG
from bigmodel_jax.pretrained.vit import VIT
from bigmodel_jax.pretrained.whisper import WHISPER
from bigmodel_jax.pretrained.xlnet import XLNET

FAMILIES: dict[str, Family] = {
    family.architecture: with_defaults(family)
    for family in (
        LLAMA,
        GPT2,
        *BERT,
        *ROBERTA,
        *DISTILBERT,
        *ELECTRA,
        *MODERNBERT,
        *DEBERTA,
        *XLNET,
        MISTRAL,
        QWEN2,
        QWEN3,
        SMOLLM3,
        OLMO2,
        OLMO3,
        GRANITE,
        GLM4,
        PHI3,
        GEMMA,
        GEMMA2,
        GEMMA3,
        GEMMA3_IMAGE_TEXT,
        MIXTRAL,
        QWEN3_MOE,
        QWEN3_NEXT,
        GPT_OSS,
        DEEPSEEK_V3,
        VIT,
        *DINOV2,
        T5,
        MARIAN,
        *BART,
        RESNET,
        EFFICIENTNET,
        ALEXNET,
        VGG,
        SEGFORMER,
        DETR,
        SIGLIP,
        DIT,
        PIXART,
        MMDIT,
        AUTOENCODER,
        CLIP,
        CONFORMER,
        WHISPER,
        LLAVA,
        PALIGEMMA,
        IDEFICS3,
        SMOLVLM,
    )
}

__all__ = ["FAMILIES", "Family"]
