"""SigLIP's tensor names and config.json. Most names are CLIP's."""

from bigmodel_jax.models.siglip import SiglipConfig
from bigmodel_jax.pretrained.clip import (
    IGNORED,
    TOWERS,
    dense,
    layer_norm,
    text_from_hf,
    text_to_hf,
    vision_from_hf,
    vision_to_hf,
)
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import VECTOR, Row, linear

POOL, QKV = "vision_model.head.", ("vision/pool/attn/q", "vision/pool/attn/k", "vision/pool/attn/v")
ROWS = (
    *TOWERS,
    Row("logit_bias", "logit_bias"),
    *dense("text/head", "text_model.head"),
    Row("vision/pool/probe", POOL + "probe", VECTOR._replace(theirs=lambda x: x[None])),
    # torch.nn.MultiheadAttention joins queries, keys and values in one tensor.
    Row(QKV, POOL + "attention.in_proj_weight", linear()),
    Row(tuple(f"{path}_bias" for path in QKV), POOL + "attention.in_proj_bias", VECTOR),
    Row("vision/pool/attn/o", POOL + "attention.out_proj.weight", linear(in_dims=2)),
    Row("vision/pool/attn/o_bias", POOL + "attention.out_proj.bias"),
    *layer_norm("vision/pool/norm", POOL + "layernorm"),
    *dense("vision/pool/mlp/up", POOL + "mlp.fc1"),
    *dense("vision/pool/mlp/down", POOL + "mlp.fc2"),
)
# The defaults of transformers' SiglipVisionConfig and SiglipTextConfig.
LAYERS = {"num_hidden_layers": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
VISION = {"image_size": 224, "patch_size": 16}
VOCABULARY = {"vocab_size": 32_000, "max_position_embeddings": 64}


def from_hf(hf: dict) -> SiglipConfig:
    """The SiglipConfig that a config.json of transformers' SiglipModel describes.

    The initial values of the logits' scale and bias are the paper's, since no config.json states
    them.
    """
    check_fixed(hf["vision_config"], vision_use_head=True)
    vision = vision_from_hf(hf["vision_config"], LAYERS | SIZES | VISION)
    check_fixed(hf["text_config"], projection_size=(vision.embed_dim, None))
    return SiglipConfig(vision=vision, text=text_from_hf(hf["text_config"], LAYERS | SIZES | VOCABULARY))


def to_hf(cfg: SiglipConfig) -> dict:
    """The config.json of transformers' SiglipModel for this config."""
    text = {**text_to_hf(cfg.text), "projection_size": cfg.vision.embed_dim}
    return {
        "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **vision_to_hf(cfg.vision), "vision_use_head": True},
        "text_config": {"model_type": "siglip_text_model", **text},
    }


SIGLIP = Family("SiglipModel", SiglipConfig, from_hf, to_hf, ROWS, IGNORED)
