"""Adds the adapters of this folder to their base model. It needs peft, transformers and torch.

python use.py BASE                                   loads BASE (a folder or name) with adapters
python use.py BASE --tokens 5,17,3 --outputs o.npz   writes the logits for token ids with NumPy
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel

HERE = Path(__file__).resolve().parent


def main():
    """Reads the command line, loads the model with its adapters and does what was asked."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("base")
    options.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")])
    options.add_argument("--outputs", type=Path, default=Path("outputs.npz"))
    given = options.parse_args()
    base = transformers.AutoModelForCausalLM.from_pretrained(given.base)
    model = PeftModel.from_pretrained(base, str(HERE)).eval()
    print(type(base).__name__, f"{sum(x.numel() for x in model.parameters()):,} parameters with adapters")
    if given.tokens:
        with torch.no_grad():
            np.savez(given.outputs, logits=model(input_ids=torch.tensor([given.tokens])).logits.float().numpy())


if __name__ == "__main__":
    main()
