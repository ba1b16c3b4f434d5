"""Model families, one file each; `MODELS` is the one table of what ships.

A model of one's own needs no entry here: a config file may define its `ModelConfig` beside `get_config`.
"""

from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.bert import BertConfig
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.models.flax_module import from_linen, from_nnx
from bigmodel_jax.models.gpt2 import GPT2Config
from bigmodel_jax.models.linear import LinearConfig
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.mistral import MistralConfig
from bigmodel_jax.models.mlp import MLPConfig
from bigmodel_jax.models.qwen import Qwen2Config, Qwen3Config
from bigmodel_jax.models.t5 import T5Config
from bigmodel_jax.models.vit import ViTConfig

MODELS: dict[str, type[ModelConfig]] = {
    "llama": LlamaConfig,
    "gpt2": GPT2Config,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "t5": T5Config,
    "bert": BertConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mlp": MLPConfig,
    "cnn": CNNConfig,
    "linear": LinearConfig,
    "vit": ViTConfig,
}

__all__ = [
    "MODELS",
    "BertConfig",
    "CNNConfig",
    "GPT2Config",
    "LinearConfig",
    "LlamaConfig",
    "MLPConfig",
    "MistralConfig",
    "Model",
    "ModelConfig",
    "Out",
    "Qwen2Config",
    "Qwen3Config",
    "T5Config",
    "ViTConfig",
    "from_linen",
    "from_nnx",
]
