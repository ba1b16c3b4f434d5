"""Writes what the reference implementation computes, for the parity tests to compare with.

Runs in a Python of its own that has torch and transformers (PixArt: and diffusers), and imports
nothing of the project:

    python tests/parity/make_reference.py llama gpt2 --output tests/parity/fixtures

One folder per family: a Hugging Face folder (config.json, model.safetensors) of a tiny random
model, gradients of the loss in the same names (gradients.safetensors), everything else it computes
(reference.npz), and versions.json.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
import transformers

from references import REFERENCES


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return found | ({"diffusers": sys.modules["diffusers"].__version__} if "diffusers" in sys.modules else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help=f"all, or some of: {', '.join(REFERENCES)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "fixtures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in args.families or REFERENCES:
        folder = args.output / family
        folder.mkdir(parents=True, exist_ok=True)
        REFERENCES[family](folder)
        (folder / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
        print(family, sum(p.stat().st_size for p in folder.iterdir()) // 1000, "kB")


if __name__ == "__main__":
    main()
