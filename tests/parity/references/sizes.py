"""How many parameters transformers' models have, of every preset's config.json; and what its config
classes say by default.

Reads fixtures/sizes/configs.json, which sizes_test.py writes of the presets.
"""

import json
from pathlib import Path

import torch
import transformers

CONFIGS = Path(__file__).parents[1] / "fixtures" / "sizes" / "configs.json"
# Classes whose defaults are a published model's sizes.
DEFAULTS = (
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "DistilBertForMaskedLM",
    "ElectraForMaskedLM",
    "ModernBertForMaskedLM",
    "XLNetLMHeadModel",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3NextForCausalLM",
    "GptOssForCausalLM",
    "DeepseekV3ForCausalLM",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
)


def count(architecture: str, config: dict) -> int:
    """Parameters of the model, tied ones once; nothing is allocated."""
    cls = getattr(transformers, architecture)
    with torch.device("meta"):
        model = cls(cls.config_class.from_dict(config))
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def write(folder: Path) -> None:
    presets = json.loads(CONFIGS.read_text())
    counts = {name: count(hf["architectures"][0], hf) for name, hf in presets.items()}
    defaults = {name: getattr(transformers, name).config_class().to_dict() for name in DEFAULTS}
    found = {"counts": counts, "defaults": defaults}
    (folder / "reference.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


SIZES = {"sizes": write}
