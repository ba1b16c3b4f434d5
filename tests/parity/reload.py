"""Loads exported folders in the reference implementation and writes what it computes with them.

Runs in a Python of its own that has torch and transformers (PixArt: and diffusers), and imports
nothing of the project:

    python tests/parity/reload.py FOLDER ...

Each folder is an export with inputs.npz beside its weights; the result is reloaded.npz. Tensors
that the reference misses, does not know or finds of another shape are an error.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from references import dit, efficientnet, torchvision_classifiers

VALUES = (
    *("last_hidden_state", "pooler_output", "logits", "prediction_logits", "seq_relationship_logits"),
    *("start_logits", "end_logits", "image_embeds", "text_embeds", "sample", "pred_boxes"),
)
# What a model computes anew when it starts, and no file holds.
COMPUTED = ("embed_positions.weight", "position_ids", "num_batches_tracked", "mask_token")


def load(folder: Path, config: dict):
    if "_class_name" in config:
        import diffusers

        options = {"output_loading_info": True, "torch_dtype": torch.float32}
        model, info = getattr(diffusers, config["_class_name"]).from_pretrained(folder, **options)
    else:
        model_class = getattr(transformers, config["architectures"][0])
        options = {"output_loading_info": True, "dtype": torch.float32}
        try:
            model, info = model_class.from_pretrained(folder, attn_implementation="eager", **options)
        except ValueError:  # a class with one kind of attention
            model, info = model_class.from_pretrained(folder, **options)
    wrong = [name for names in info.values() for name in names if not str(name).endswith(COMPUTED)]
    if wrong:
        raise ValueError(f"{', '.join(map(str, wrong))}")
    return model.eval()


def outputs(folder: Path, config: dict, inputs: dict) -> dict:
    """transformers and diffusers have no class for some families: there it is the public code's
    mathematics."""
    architecture = config.get("architectures", [""])[0]
    if architecture == "DiT":
        weights = load_file(folder / "model.safetensors") | {"pos_embed": dit.positions()[None]}
        return {"logits": dit.forward(weights, inputs["image"], inputs["timestep"], inputs["label"])[0]}
    if architecture == "EfficientNetLite":
        weights = load_file(folder / "model.safetensors")
        return {"logits": efficientnet.forward(weights, inputs["image"], config=config)}
    if architecture in torchvision_classifiers.NETWORKS:
        return {"logits": torchvision_classifiers.load(folder, config)(inputs["image"])}
    result = load(folder, config)(**inputs)
    found = {name: getattr(result, name, None) for name in VALUES}
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for folder in map(Path, sys.argv[1:]):
        config = json.loads((folder / "config.json").read_text())
        with np.load(folder / "inputs.npz") as arrays:
            inputs = {name: torch.tensor(x) for name, x in arrays.items()}
        try:
            with torch.no_grad():
                found = outputs(folder, config, inputs)
        except Exception as error:  # the test of this folder then says that its result is not there
            print(f"{folder.name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        np.savez_compressed(folder / "reloaded.npz", **{name: x.float().numpy() for name, x in found.items()})


if __name__ == "__main__":
    main()
