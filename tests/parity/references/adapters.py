"""PEFT's adapters on a tiny Llama in float64: logits and all trained gradients, of adapters that
are nowhere zero."""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from references.weights import randomize, save_weights

PRODUCTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "lora": {"target_modules": PRODUCTS},
    "rslora": {"target_modules": PRODUCTS, "use_rslora": True},
    "dora": {"target_modules": PRODUCTS, "use_dora": True},
    "tables": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "dora_tables": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "saved": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    "patterns": {
        "target_modules": PRODUCTS,
        "rank_pattern": {r".*\.q_proj": 2, r".*\.up_proj": 6},
        "alpha_pattern": {r".*\.q_proj": 3, r".*\.down_proj": 16},
    },
}


def model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=48, num_key_value_heads=2, max_position_embeddings=32))
    randomize(made)
    return made


def shake(made, generator: torch.Generator) -> None:
    """What is trained gets values of its own; PEFT begins with zeros in one half."""
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.requires_grad:
                noise = torch.randn(p.shape, generator=generator).double()
                p += 0.1 * noise if "magnitude" in name or "modules_to_save" in name else 0.2 * noise


def case(name: str, tokens: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(3)
    made = get_peft_model(model().double(), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **CASES[name]))
    shake(made, generator)
    logits = made(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    arrays = {f"{name}/logits": logits.detach().float().numpy()}
    for path, p in made.named_parameters():
        if p.requires_grad:
            short = path.removeprefix("base_model.model.").replace(".default", "")
            arrays[f"{name}/value/{short}"] = p.detach().float().numpy()
            arrays[f"{name}/gradient/{short}"] = p.grad.float().numpy()
    return arrays


def write(folder: Path) -> None:
    save_weights(model(), folder)
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(48, (2, 3, 9), generator=generator)
    arrays = {"tokens": tokens.numpy(), "targets": targets.numpy()}
    for name in CASES:
        arrays |= case(name, tokens, targets)
    np.savez_compressed(folder / "reference.npz", **arrays)


ADAPTERS = {"adapters": write}
