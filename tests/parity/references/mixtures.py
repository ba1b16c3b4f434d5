"""Mixtures of experts of transformers, with their load-balancing loss."""

import functools

import torch
from transformers import MixtralConfig, Qwen3MoeConfig

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

MIXTURES = {
    "mixtral": functools.partial(write, MIXTRAL, training=True, loss=loss),
    "qwen3_moe": functools.partial(write, QWEN3_MOE, training=True, loss=loss),
}
