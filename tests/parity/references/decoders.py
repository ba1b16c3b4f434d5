"""Decoder-only models of transformers: tiny, random, and everything that a parity test asks of
them."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from references.weights import randomize, save_gradients, save_weights

VOCAB = 96
STEPS = 20
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def next_token_loss(model, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1))


def forward(model) -> dict[str, np.ndarray]:
    """Runs rows of an odd length and keeps every hidden state. It also runs padding on either side,
    and documents one by one as if packed."""
    out = {"tokens": tokens(1, 2, 13).numpy()}
    with torch.no_grad():
        result = model(input_ids=tokens(1, 2, 13), output_hidden_states=True, use_cache=False)
        out["logits"] = result.logits.numpy()
        out["hidden_states"] = np.stack([h.numpy() for h in result.hidden_states])
        ids = tokens(2, 2, 11)
        for side in ("left", "right"):
            mask = torch.ones(2, 11, dtype=torch.long)
            mask[1, slice(0, 4) if side == "left" else slice(7, 11)] = 0
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            out |= {f"padded_{side}/mask": mask.numpy(), f"padded_{side}/logits": logits.numpy()}
        out["padded/tokens"] = ids.numpy()
        for n, length in enumerate((5, 8)):
            document = tokens(3 + n, 1, length)
            out[f"packed/tokens_{n}"] = document.numpy()
            out[f"packed/logits_{n}"] = model(input_ids=document, use_cache=False).logits.numpy()
    return out


def greedy(model) -> dict[str, np.ndarray]:
    prompt = tokens(7, 2, 5)
    model.generation_config.eos_token_id = None  # 16 tokens, whatever they are
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16)
    return {"greedy/prompt": prompt.numpy(), "greedy/tokens": ids[:, 5:].numpy()}


def train(model, next_token_loss=next_token_loss) -> dict[str, np.ndarray]:
    """20 AdamW steps, decay on matrices alone (stacked biases and a channel's taps are none),
    clipped."""
    vectors = ("bias", "conv1d.weight")
    matrix = {name: p.ndim >= 2 and not name.endswith(vectors) for name, p in model.named_parameters()}
    decay = [p for name, p in model.named_parameters() if matrix[name]]
    rest = [p for name, p in model.named_parameters() if not matrix[name]]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    batches = tokens(11, 4, 4, 12).repeat(STEPS // 4, 1, 1)  # four batches over and over: something to learn
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = next_token_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {"train/tokens": batches.numpy(), "train/losses": np.array(losses)}


def write(config, folder: Path, *, training: bool = False, loss=next_token_loss, adjust=lambda model: None) -> None:
    torch.manual_seed(0)  # vectors that start at random (sinks) keep their start under the noise of randomize
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomize(model)
    adjust(model)
    save_weights(model, folder)
    arrays = forward(model) | greedy(model)
    value = loss(model, tokens(1, 2, 13))
    value.backward()
    arrays["loss"] = value.detach().numpy()
    save_gradients(model, folder)
    if training:
        arrays |= train(model, loss)
    np.savez_compressed(folder / "reference.npz", **arrays)


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Layers with a window, without scaled positions, and one without either.
OLMO3 = {
    "num_hidden_layers": 3,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 4.0}
        | {"original_max_position_embeddings": 16, "attention_factor": 1.1, "beta_slow": 0.5},
    },
}
MULTIPLIERS = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 3.0,
}
GLM_ROPE = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75}
# Every row is longer than 4 tokens, so transformers takes the long divisors; of 64, the short ones.
PHI3 = {"original_max_position_embeddings": 4, "sliding_window": 5}
PHI3_ROPE = {"rope_type": "longrope", "rope_theta": 100.0}
PHI3_ROPE |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.5, 4.0]}
PHI4_MINI = {"original_max_position_embeddings": 64, "max_position_embeddings": 256, "tie_word_embeddings": True}
PHI4_MINI_ROPE = PHI3_ROPE | {"partial_rotary_factor": 0.75, "attention_factor": 1.3}
PHI4_MINI_ROPE |= {"short_factor": [1.0, 1.3, 1.9], "long_factor": [1.0, 5.0, 7.0]}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

DECODERS = {
    "gpt2": functools.partial(write, GPT2Config(**GPT2_SIZES, **NO_DROPOUT, **IDS), training=True),
    "llama": functools.partial(write, LlamaConfig(**SIZES), training=True),
    "mistral": functools.partial(write, MistralConfig(**SIZES, head_dim=16, sliding_window=4)),
    "qwen2": functools.partial(write, Qwen2Config(**SIZES)),
    "qwen3": functools.partial(write, Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
    "smollm3": functools.partial(
        write, SmolLM3Config(**SIZES | {"num_hidden_layers": 3}, no_rope_layers=[1, 0, 1], tie_word_embeddings=False)
    ),
    "olmo2": functools.partial(write, Olmo2Config(**SIZES)),
    "olmo3": functools.partial(write, Olmo3Config(**SIZES | OLMO3)),
    "granite": functools.partial(write, GraniteConfig(**SIZES, **MULTIPLIERS, tie_word_embeddings=True)),
    "glm4": functools.partial(
        write,
        Glm4Config(
            **SIZES | {"num_key_value_heads": 1},
            head_dim=16,
            rms_norm_eps=1e-5,
            rope_parameters=GLM_ROPE,
            attention_bias=True,
        ),
    ),
    "phi3": functools.partial(write, Phi3Config(**SIZES | PHI3, rope_parameters=PHI3_ROPE), training=True),
    "phi4_mini": functools.partial(write, Phi3Config(**SIZES | PHI4_MINI, rope_parameters=PHI4_MINI_ROPE)),
    "llama31": functools.partial(write, LlamaConfig(**SIZES, rope_parameters=LLAMA31, tie_word_embeddings=True)),
}
