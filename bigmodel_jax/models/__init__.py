"""Model families, one file each; `MODELS` is the one table of what ships.

A model of one's own needs no entry here: a config file may define its `ModelConfig` beside `get_config`.
"""

from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.gpt2 import GPT2Config
from bigmodel_jax.models.llama import LlamaConfig

MODELS: dict[str, type[ModelConfig]] = {
    "llama": LlamaConfig,
    "gpt2": GPT2Config,
}

__all__ = ["MODELS", "GPT2Config", "LlamaConfig", "Model", "ModelConfig", "Out"]
