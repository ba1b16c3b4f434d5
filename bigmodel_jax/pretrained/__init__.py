"""Published weights in and out: Hugging Face folders and GGUF files, by one name table per family.

`FAMILIES` is the one table of what can be imported and exported, by the architecture's name in config.json.
"""

from bigmodel_jax.pretrained.bert import BERT
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.gpt2 import GPT2
from bigmodel_jax.pretrained.llama import LLAMA
from bigmodel_jax.pretrained.mistral import MISTRAL
from bigmodel_jax.pretrained.qwen import QWEN2, QWEN3
from bigmodel_jax.pretrained.t5 import T5
from bigmodel_jax.pretrained.vit import VIT

FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLAMA, GPT2, MISTRAL, QWEN2, QWEN3, *BERT, MISTRAL, QWEN2, QWEN3, VIT, T5)}

__all__ = ["FAMILIES", "Family"]
