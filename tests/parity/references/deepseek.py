"""DeepSeek-V3 of transformers, with and without a latent for queries, and its multi-token
prediction modules."""

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config
from transformers.modeling_layers import MtpModel

from references.decoders import SIZES, VOCAB, forward, greedy, next_token_loss, tokens
from references.weights import randomize, save_gradients, save_weights

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.8,
    "mscale_all_dim": 1.2,
    "original_max_position_embeddings": 16,
}
# 3 of 8 experts from 2 of 4 groups; a dense layer before two of experts. Here as many kv heads as
# heads.
LATENT = SIZES | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 8,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_nextn_predict_layers": 0,
}
DEEPSEEK = DeepseekV3Config(**LATENT, q_lora_rank=24, rope_parameters=YARN)
MOONLIGHT = DeepseekV3Config(
    **(LATENT | {"n_group": 1, "topk_group": 1}), q_lora_rank=None, norm_topk_prob=False, rms_norm_eps=1e-5
)
MTP_LAYERS = 2


def randomize_all(model, seed: int = 0) -> None:
    """Also the routing biases, which are buffers: away from the zeros that they start at, they
    decide some choices."""
    randomize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def write(config, folder: Path, *, mtp: bool = False) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomize_all(model)
    save_weights(model, folder)
    arrays = forward(model) | greedy(model)
    loss = next_token_loss(model, tokens(1, 2, 13))
    loss.backward()
    save_gradients(model, folder)
    np.savez_compressed(folder / "reference.npz", loss=loss.detach().numpy(), **arrays)
    if mtp:
        write_mtp(folder)


def write_mtp(folder: Path) -> None:
    """Modules on top of the model just written: weights in the names of the published files, logits
    and gradients."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    model.config.num_nextn_predict_layers = MTP_LAYERS
    modules = MtpModel(model, MTP_LAYERS).float().eval()
    randomize_all(modules.layers, seed=5)
    ids = tokens(1, 2, 13)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    loss, arrays = 0.0, {}
    for k in range(MTP_LAYERS):
        # Module k stands at place i with the token at i + k + 1, and predicts the one after it.
        inputs, hidden = ids[:, k + 1 :], hidden[:, :-1]
        places = torch.arange(inputs.shape[1])[None]
        hidden = modules.forward_layer(k, hidden, places, None, input_ids=inputs)
        logits = model.lm_head(hidden)
        arrays[f"mtp/logits_{k}"] = logits.detach().numpy()
        picked = logits[:, :-1].reshape(-1, VOCAB)
        loss = loss + torch.nn.functional.cross_entropy(picked, ids[:, k + 2 :].reshape(-1), reduction="sum")
    loss.backward()
    arrays["mtp/loss_sum"] = loss.detach().numpy()
    np.savez_compressed(folder / "mtp.npz", **arrays)
    save_file(published(modules, lambda p: p), folder / "mtp.safetensors")
    save_file(published(modules, lambda p: p.grad), folder / "mtp_gradients.safetensors")


def published(modules, value) -> dict[str, torch.Tensor]:
    """Tensors by their published names in model.layers.{N + k}: the block's own names, and enorm,
    hnorm, eh_proj and shared_head.norm."""
    out = {}
    for k, layer in enumerate(modules.layers):
        start = f"model.layers.{LATENT['num_hidden_layers'] + k}."
        named = [*layer.named_parameters(), *layer.named_buffers()]
        for name, p in named:
            x = torch.zeros_like(p) if value(p) is None else value(p).detach()
            name = name.removeprefix("mtp_block.").replace("post_norm.weight", "shared_head.norm.weight", 1)
            for suffix, part in split_experts(name, x):
                out[start + suffix] = part.contiguous().clone()
    return out


def split_experts(name: str, x: torch.Tensor):
    """One tensor per expert and projection, where transformers keeps all in one."""
    if name.endswith("experts.gate_up_proj"):
        for e, both in enumerate(x):
            for half, part in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                yield name.replace("gate_up_proj", f"{e}.{half}.weight"), part
    elif name.endswith("experts.down_proj"):
        for e, part in enumerate(x):
            yield name.replace("down_proj", f"{e}.down_proj.weight"), part
    else:
        yield name, x


DEEPSEEKS = {
    "deepseek": functools.partial(write, DEEPSEEK, mtp=True),
    "moonlight": functools.partial(write, MOONLIGHT),
}
