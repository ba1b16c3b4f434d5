"""The defaults of transformers' config classes, for keys that a config.json leaves out.

The values are those of transformers 5.23 and diffusers 0.42. Sizes such as the width are not
listed, since nobody leaves them out on purpose: a file without them is refused.
"""

import dataclasses
from typing import Any

from bigmodel_jax import models
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.pretrained.family import Family

LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
BERT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "type_vocab_size": 2}
GEMMA = {"head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": True}
GEMMA2 = GEMMA | {
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA3 = GEMMA2 | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "final_logit_softcapping": None}
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

DEFAULTS: dict[type[ModelConfig], dict[str, Any]] = {
    models.GPT2Config: {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None},
    models.BertConfig: BERT,
    models.RobertaConfig: BERT,
    models.DebertaConfig: BERT
    | {
        "layer_norm_eps": 1e-7,
        "type_vocab_size": 0,
        "relative_attention": False,
        "position_biased_input": True,
        "pos_att_type": None,
        "share_att_key": False,
        "norm_rel_ebd": "none",
    },
    models.DistilBertConfig: {"activation": "gelu", "dropout": 0.1},
    models.ElectraConfig: BERT | {"embedding_size": 128},
    models.ModernBertConfig: {
        "classifier_pooling": "cls",
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_attention": 128,
        "local_rope_theta": 10_000.0,
        "norm_eps": 1e-5,
    },
    models.XLNetConfig: {"layer_norm_eps": 1e-12, "dropout": 0.1},
    models.LlamaConfig: LLAMA,
    models.MistralConfig: LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096},
    models.Qwen2Config: LLAMA | {"num_key_value_heads": 32},
    models.Qwen3Config: LLAMA | {"num_key_value_heads": 32, "head_dim": 128},
    models.SmolLM3Config: LLAMA
    | {
        "num_key_value_heads": 4,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
    },
    models.Olmo2Config: LLAMA | {"rms_norm_eps": 1e-5},
    models.Olmo3Config: LLAMA | {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "sliding_window": 4096},
    models.GraniteConfig: LLAMA
    | dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), 1.0),
    models.Glm4Config: LLAMA
    | {"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1.5625e-7, "attention_bias": True},
    models.Phi3Config: LLAMA | {"rms_norm_eps": 1e-5, "sliding_window": None, "original_max_position_embeddings": 4096},
    models.GemmaConfig: GEMMA | {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 16},
    models.Gemma2Config: GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    models.Gemma3Config: GEMMA3,
    models.MixtralConfig: LLAMA
    | {"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "num_key_value_heads": 8, "sliding_window": None},
    models.Qwen3MoeConfig: LLAMA | {"num_key_value_heads": 4, "norm_topk_prob": False},
    models.Qwen3NextConfig: LLAMA
    | {
        "num_key_value_heads": 2,
        "head_dim": 256,
        "norm_topk_prob": True,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "shared_expert_intermediate_size": 512,
    },
    models.GptOssConfig: LLAMA
    | {
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    models.DeepseekConfig: LLAMA
    | {
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "initializer_range": 0.02,
        "n_shared_experts": 1,
    },
    models.DetrConfig: {
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
        "num_queries": 100,
        "activation_function": "relu",
    },
    models.PaliGemmaConfig: {"hidden_size": 2048, "projection_dim": 2048},
    models.WhisperConfig: {
        "activation_function": "gelu",
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
        # Both ids are those of the English-only models.
        "decoder_start_token_id": 50_257,
        "eos_token_id": 50_256,
    },
    models.ViTConfig: {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_channels": 3, "qkv_bias": True},
    models.ResNetConfig: {"hidden_act": "relu", "layer_type": "bottleneck", "num_channels": 3},
    models.SegformerConfig: {
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [32, 64, 160, 256],
        "num_attention_heads": [1, 2, 5, 8],
        "mlp_ratios": [4, 4, 4, 4],
        "sr_ratios": [8, 4, 2, 1],
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "hidden_act": "gelu",
        "decoder_hidden_size": 256,
    },
    models.T5Config: {
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    models.MMDiTConfig: {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "num_layers": 18,
        "attention_head_dim": 64,
        "num_attention_heads": 18,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1152,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
        "pos_embed_max_size": 96,
    },
    models.PixArtConfig: {"in_channels": 4, "out_channels": 8, "cross_attention_dim": 1152},
    models.TransformerConfig: {
        "activation_function": "gelu",
        "decoder_attention_heads": 16,
        "decoder_ffn_dim": 4096,
        # Marian's decoder begins with the padding token, the last id.
        "decoder_start_token_id": 58_100,
        "scale_embedding": False,
        "eos_token_id": 0,
    },
    models.BartConfig: {
        "activation_function": "gelu",
        "decoder_attention_heads": 16,
        "decoder_ffn_dim": 4096,
        "decoder_start_token_id": 2,
        "scale_embedding": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}

DINOV2 = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "num_channels": 3,
    "qkv_bias": True,
    "image_size": 224,
}
# Defaults by architecture, where one config class of ours serves architectures with different
# defaults.
OF_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "Dinov2Model": DINOV2 | {"patch_size": 14},
    "Dinov2ForImageClassification": DINOV2 | {"patch_size": 14},
    "Dinov2WithRegistersModel": DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
    "Dinov2WithRegistersForImageClassification": DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
}


def with_defaults(family: Family) -> Family:
    """The family with a `from_hf` that fills in the class's defaults for keys that a config.json
    lacks.
    """
    # `Keys` stands on the right of `|`, so it still notes which keys are read.
    defaults = OF_ARCHITECTURE.get(family.architecture, DEFAULTS.get(family.config, {}))
    read = family.from_hf
    return dataclasses.replace(family, from_hf=lambda hf: read(defaults | hf)) if defaults else family
