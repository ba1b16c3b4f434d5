"""Mixtures of experts of transformers, with their load-balancing loss."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig, Qwen3NextConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from references.decoders import SIZES, write

BALANCE = 0.02


def loss(model, ids: torch.Tensor) -> torch.Tensor:
    """Without the last token, which predicts nothing and so is not routed."""
    out = model(input_ids=ids[:, :-1], use_cache=False, output_router_logits=True)
    nats = torch.nn.functional.cross_entropy(
        out.logits.reshape(-1, out.logits.shape[-1]).float(), ids[:, 1:].reshape(-1)
    )
    return nats + model.config.router_aux_loss_coef * out.aux_loss


AUXILIARY = {"output_router_logits": True, "router_aux_loss_coef": BALANCE}
MIXTRAL = MixtralConfig(**SIZES, **AUXILIARY, num_local_experts=4, num_experts_per_tok=2)
QWEN3_MOE = Qwen3MoeConfig(
    **SIZES,
    **AUXILIARY,
    head_dim=16,
    moe_intermediate_size=12,
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    tie_word_embeddings=True,
)
# Two blocks of layers, two value heads per key head, and values of other sizes than keys.
QWEN3_NEXT = Qwen3NextConfig(
    **SIZES | {"num_hidden_layers": 8},
    **AUXILIARY,
    head_dim=16,
    moe_intermediate_size=12,
    shared_expert_intermediate_size=20,
    num_experts=4,
    num_experts_per_tok=2,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=12,
    linear_conv_kernel_dim=3,
    rms_norm_eps=1e-3,  # outputs near zero, which a norm enlarges, hold little but rounding
    rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
)


def settled(model) -> None:
    """States that last for some tokens, convolutions that pass on what they read, and a stream that
    each layer changes a little.

    Otherwise this model, of eight layers with norms inside, is chaotic: two copies in torch, one
    with weights of another last bit, differ by 0.4 in their losses after 20 steps.
    """
    factors = {"conv1d.": 6.0, "embed_tokens.": 5.0, "out_proj.": 0.5, "o_proj.": 0.5, "down_proj": 0.5}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p *= next((factor for part, factor in factors.items() if part in name), 1.0)
            p -= 2.0 if name.endswith("A_log") else 0.0


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
GPT_OSS = GptOssConfig(
    **SIZES | {"intermediate_size": 32},
    **AUXILIARY,
    head_dim=16,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=4,
    rope_parameters=YARN,
    swiglu_limit=0.5,  # low enough that these weights reach it
)


def write_mxfp4(folder: Path) -> None:
    """Every byte, under exponents as published weights have them, and what the reference makes of
    it."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(97, 140, (3, 8, 2), generator=generator, dtype=torch.uint8)
    plain = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    arrays = {"blocks": blocks.numpy(), "scales": scales.numpy(), "plain": plain.float().numpy()}
    np.savez_compressed(folder / "reference.npz", **arrays)


MIXTURES = {
    "mixtral": functools.partial(write, MIXTRAL, training=True, loss=loss),
    "gpt_oss": functools.partial(write, GPT_OSS, training=True, loss=loss),
    "mxfp4": write_mxfp4,
    "qwen3_moe": functools.partial(write, QWEN3_MOE, training=True, loss=loss),
    "qwen3_next": functools.partial(write, QWEN3_NEXT, training=True, loss=loss, adjust=settled),
}
