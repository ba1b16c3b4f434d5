"""Published weights in and out: Hugging Face folders and GGUF files, by one name table per family.

`FAMILIES` is the one table of what can be imported and exported, by the architecture's name in config.json.
"""

from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.gpt2 import GPT2
from bigmodel_jax.pretrained.llama import LLAMA

FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLAMA, GPT2)}

__all__ = ["FAMILIES", "Family"]
