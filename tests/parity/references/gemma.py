"""Gemma 1, 2 and 3 of transformers, tiny and random, with what the other decoders have."""

import functools

from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig

from references.decoders import SIZES, write

LOCAL = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 4}
# Low enough to bend the logits of these models.
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
}
# Local, local, global, local: a pattern that the depth cuts off.
PATTERN = {"num_hidden_layers": 4, "sliding_window_pattern": 3, "rope_parameters": ROPE}

GEMMA = {
    "gemma": functools.partial(write, GemmaConfig(**SIZES | {"num_key_value_heads": 1}, head_dim=16)),
    "gemma2": functools.partial(write, Gemma2Config(**SIZES, **LOCAL, **CAPS)),
    "gemma3": functools.partial(write, Gemma3TextConfig(**SIZES | PATTERN, **LOCAL)),
}
