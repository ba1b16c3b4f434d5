"""Loads this folder in transformers. It needs transformers and torch.

A config.json that names a class of diffusers ("_class_name") needs diffusers as well.

python use.py                                   prints the model's class and size
python use.py --prompt "Once upon a time"       continues a prompt with a language model
python use.py --tokens 5,17,3 --outputs o.npz   writes the outputs for token ids with NumPy
"""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent


def model():
    """The model, loaded by the class that config.json names."""
    config = json.loads((HERE / "config.json").read_text())
    # A config.json of diffusers names its class under this key, and has no "architectures".
    package, name = ("diffusers", config["_class_name"]) if "_class_name" in config else ("", "")
    module = importlib.import_module(package) if package else transformers
    return getattr(module, name or config["architectures"][0]).from_pretrained(HERE).eval()


def main():
    """Reads the command line, loads the model and does what was asked."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompt")
    options.add_argument("--new", type=int, default=32, help="tokens to write")
    options.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")])
    options.add_argument("--outputs", type=Path, default=Path("outputs.npz"))
    given, loaded = options.parse_args(), model()
    if given.prompt:
        tokenizer = transformers.AutoTokenizer.from_pretrained(HERE)
        ids = tokenizer(given.prompt, return_tensors="pt")["input_ids"]
        print(tokenizer.decode(loaded.generate(ids, max_new_tokens=given.new, do_sample=False)[0]))
    elif given.tokens:
        with torch.no_grad():
            out = loaded(input_ids=torch.tensor([given.tokens]))
        arrays = {name: x for name, x in out.items() if torch.is_tensor(x)}
        # NumPy has no bfloat16.
        np.savez(given.outputs, **{n: x.float().numpy() for n, x in arrays.items()})
    else:
        print(type(loaded).__name__, f"{sum(x.numel() for x in loaded.parameters()):,} parameters")


if __name__ == "__main__":
    main()
