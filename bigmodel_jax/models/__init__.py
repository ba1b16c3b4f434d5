"""The model families, one file each. `MODELS` is the one table of all families that ship.

A model of your own needs no entry in `MODELS`: a config file may define its `ModelConfig` beside
`get_config`.
"""

from bigmodel_jax.models.alexnet import AlexNetConfig
from bigmodel_jax.models.autoencoder import AutoencoderConfig
from bigmodel_jax.models.bag_of_embeddings import BagOfEmbeddingsConfig
from bigmodel_jax.models.bart import BartConfig
from bigmodel_jax.models.base import Entry, Model, ModelConfig, Out, Parts
from bigmodel_jax.models.bert import BertConfig
from bigmodel_jax.models.clip import CLIPConfig
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.models.compute import Compute, StackCompute
from bigmodel_jax.models.conformer import ConformerConfig
from bigmodel_jax.models.deberta import DebertaConfig
from bigmodel_jax.models.deepseek import DeepseekConfig
from bigmodel_jax.models.detr import DetrConfig
from bigmodel_jax.models.discrete_autoencoder import DiscreteAutoencoderConfig
from bigmodel_jax.models.distilbert import DistilBertConfig
from bigmodel_jax.models.dit import DiTConfig
from bigmodel_jax.models.efficientnet import EfficientNetConfig
from bigmodel_jax.models.electra import ElectraConfig
from bigmodel_jax.models.flax_module import from_linen, from_nnx
from bigmodel_jax.models.gemma import Gemma2Config, Gemma3Config, GemmaConfig
from bigmodel_jax.models.glm import Glm4Config
from bigmodel_jax.models.gpt2 import GPT2Config
from bigmodel_jax.models.gpt_oss import GptOssConfig
from bigmodel_jax.models.granite import GraniteConfig
from bigmodel_jax.models.idefics3 import Idefics3Config, SmolVLMConfig
from bigmodel_jax.models.linear import LinearConfig
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.llava import LlavaConfig
from bigmodel_jax.models.mistral import MistralConfig
from bigmodel_jax.models.mixtral import MixtralConfig
from bigmodel_jax.models.mlp import MLPConfig
from bigmodel_jax.models.mmdit import MMDiTConfig, MMDiTTextConfig
from bigmodel_jax.models.modernbert import ModernBertConfig
from bigmodel_jax.models.olmo import Olmo2Config, Olmo3Config
from bigmodel_jax.models.paligemma import PaliGemmaConfig
from bigmodel_jax.models.phi3 import Phi3Config
from bigmodel_jax.models.pixart import PixArtConfig, TextToImageConfig
from bigmodel_jax.models.qwen import Qwen2Config, Qwen3Config
from bigmodel_jax.models.qwen_moe import Qwen3MoeConfig
from bigmodel_jax.models.qwen_next import Qwen3NextConfig
from bigmodel_jax.models.resnet import ResNetConfig
from bigmodel_jax.models.rnn import RNNClassifierConfig, RNNConfig
from bigmodel_jax.models.roberta import RobertaConfig
from bigmodel_jax.models.segformer import SegformerConfig
from bigmodel_jax.models.siglip import SiglipConfig
from bigmodel_jax.models.smollm3 import SmolLM3Config
from bigmodel_jax.models.t5 import T5Config
from bigmodel_jax.models.transformer import TransformerConfig
from bigmodel_jax.models.unet import UNetConfig
from bigmodel_jax.models.vgg import VGGConfig
from bigmodel_jax.models.vit import ViTConfig
from bigmodel_jax.models.whisper import WhisperConfig
from bigmodel_jax.models.xlnet import XLNetConfig

MODELS: dict[str, type[ModelConfig]] = {
    "llama": LlamaConfig,
    "gpt2": GPT2Config,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "smollm3": SmolLM3Config,
    "olmo2": Olmo2Config,
    "olmo3": Olmo3Config,
    "granite": GraniteConfig,
    "glm4": Glm4Config,
    "phi3": Phi3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3Config,
    "mixtral": MixtralConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "qwen3_next": Qwen3NextConfig,
    "gpt_oss": GptOssConfig,
    "deepseek": DeepseekConfig,
    "t5": T5Config,
    "transformer": TransformerConfig,
    "bart": BartConfig,
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "distilbert": DistilBertConfig,
    "electra": ElectraConfig,
    "modernbert": ModernBertConfig,
    "deberta": DebertaConfig,
    "xlnet": XLNetConfig,
    "mlp": MLPConfig,
    "cnn": CNNConfig,
    "linear": LinearConfig,
    "bag_of_embeddings": BagOfEmbeddingsConfig,
    "rnn": RNNConfig,
    "rnn_classifier": RNNClassifierConfig,
    "vit": ViTConfig,
    "resnet": ResNetConfig,
    "efficientnet": EfficientNetConfig,
    "alexnet": AlexNetConfig,
    "vgg": VGGConfig,
    "segformer": SegformerConfig,
    "detr": DetrConfig,
    "unet": UNetConfig,
    "clip": CLIPConfig,
    "siglip": SiglipConfig,
    "dit": DiTConfig,
    "pixart": PixArtConfig,
    "text_to_image": TextToImageConfig,
    "conformer": ConformerConfig,
    "whisper": WhisperConfig,
    "autoencoder": AutoencoderConfig,
    "discrete_autoencoder": DiscreteAutoencoderConfig,
    "mmdit": MMDiTConfig,
    "mmdit_text": MMDiTTextConfig,
    "llava": LlavaConfig,
    "paligemma": PaliGemmaConfig,
    "idefics3": Idefics3Config,
    "smolvlm": SmolVLMConfig,
}

__all__ = [
    "MODELS",
    "AlexNetConfig",
    "AutoencoderConfig",
    "BagOfEmbeddingsConfig",
    "BartConfig",
    "BertConfig",
    "CLIPConfig",
    "CNNConfig",
    "Compute",
    "ConformerConfig",
    "DebertaConfig",
    "DeepseekConfig",
    "DetrConfig",
    "DiTConfig",
    "DiscreteAutoencoderConfig",
    "DistilBertConfig",
    "EfficientNetConfig",
    "ElectraConfig",
    "Entry",
    "GPT2Config",
    "Gemma2Config",
    "Gemma3Config",
    "GemmaConfig",
    "Glm4Config",
    "GptOssConfig",
    "GraniteConfig",
    "Idefics3Config",
    "LinearConfig",
    "LlamaConfig",
    "LlavaConfig",
    "MLPConfig",
    "MMDiTConfig",
    "MMDiTTextConfig",
    "MistralConfig",
    "MixtralConfig",
    "Model",
    "ModelConfig",
    "ModernBertConfig",
    "Olmo2Config",
    "Olmo3Config",
    "Out",
    "PaliGemmaConfig",
    "Parts",
    "Phi3Config",
    "PixArtConfig",
    "Qwen2Config",
    "Qwen3Config",
    "Qwen3MoeConfig",
    "Qwen3NextConfig",
    "RNNClassifierConfig",
    "RNNConfig",
    "ResNetConfig",
    "RobertaConfig",
    "SegformerConfig",
    "SiglipConfig",
    "SmolLM3Config",
    "SmolVLMConfig",
    "StackCompute",
    "T5Config",
    "TextToImageConfig",
    "TransformerConfig",
    "UNetConfig",
    "VGGConfig",
    "ViTConfig",
    "WhisperConfig",
    "XLNetConfig",
    "from_linen",
    "from_nnx",
]
