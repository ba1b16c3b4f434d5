"""Writes what transformers' `output_attentions` says of the parity fixtures' decoders: PYTHON
make_attentions.py OUTPUT.npz."""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
NAMES = ("gpt2", "llama")
TOKENS = [[3, 11, 7, 7, 29, 2, 17, 5, 13]]


def attentions(name: str) -> np.ndarray:
    """(L, B, H, T, T) float32."""
    model = AutoModelForCausalLM.from_pretrained(
        FIXTURES / name, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        found = model(torch.tensor(TOKENS), output_attentions=True).attentions
    return torch.stack(found).numpy()


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], tokens=np.array(TOKENS), **{name: attentions(name) for name in NAMES})
