"""What PEFT computes with adapters on a tiny Llama and GPT-2, in a Python of its own with torch,
transformers and peft.

python tests/pretrained/peft_reference.py make FOLDER         folders that PEFT wrote, and the
logits with each python tests/pretrained/peft_reference.py gpt2 FOLDER         the same of GPT-2,
whose maps lie (in, out) python tests/pretrained/peft_reference.py read BASE FOLDER …  logits.npy
beside the adapters of each folder
"""

import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

BASE = Path(__file__).parents[1] / "parity" / "fixtures" / "llama"
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "lora_dropout": 0.1}
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True, "target_modules": "all-linear"},
    "dora": {"use_dora": True, "target_modules": ["o_proj", "down_proj"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    "patterns": {
        "target_modules": r".*\.(q|v)_proj",
        "exclude_modules": ["layers.0.self_attn.q_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"self_attn.v_proj": 3},
    },
    "layers": {"layers_to_transform": [1], "target_modules": ["k_proj", "gate_proj"]},
}
# c_attn holds queries, keys and values in one tensor.
GPT2_KINDS = {
    "lora": {"target_modules": ["c_attn"]},
    "dora": {"use_dora": True, "target_modules": ["c_attn", "mlp.c_proj"]},
    "rslora": {"use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"c_attn": 2}},
    "saved": {"target_modules": ["c_fc"], "modules_to_save": ["c_attn"]},
}


def tokens() -> torch.Tensor:
    return torch.randint(1, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits.float().numpy()


def base(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def make(output: Path, source: Path, kinds: dict) -> None:
    for name, changes in kinds.items():
        torch.manual_seed(1)
        model = get_peft_model(base(source), LoraConfig(**{**PLAIN, **changes}))
        for path, p in model.named_parameters():  # an adapter as it begins changes nothing
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.2) if "magnitude" not in path else p.data.mul_(torch.rand_like(p) + 0.5)
        model.peft_config["default"].base_model_name_or_path = source.name  # and no path of this machine
        model.save_pretrained(output / name)
        (output / name / "README.md").unlink(missing_ok=True)
        np.save(output / name / "logits.npy", logits(model))


def read(source: Path, folders: list[str]) -> None:
    for folder in map(Path, folders):
        model = PeftModel.from_pretrained(base(source), folder)
        np.save(folder / "logits.npy", logits(model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), BASE, KINDS)
    elif sys.argv[1] == "gpt2":
        make(Path(sys.argv[2]), BASE.parent / "gpt2", GPT2_KINDS)
    else:
        read(Path(sys.argv[2]), sys.argv[3:])
