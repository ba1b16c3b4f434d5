"""Model families, one file each; `MODELS` is the one table of what ships.

A model of one's own needs no entry here: a config file may define its `ModelConfig` beside `get_config`.
"""

from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.models.flax_module import from_linen, from_nnx
from bigmodel_jax.models.gpt2 import GPT2Config
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.mlp import MLPConfig

MODELS: dict[str, type[ModelConfig]] = {
    "llama": LlamaConfig,
    "gpt2": GPT2Config,
    "mlp": MLPConfig,
    "cnn": CNNConfig,
}

__all__ = [
    "MODELS",
    "CNNConfig",
    "GPT2Config",
    "LlamaConfig",
    "MLPConfig",
    "Model",
    "ModelConfig",
    "Out",
    "from_linen",
    "from_nnx",
]
