"""Models of images and texts: tiny, random, and everything that a parity test asks of them."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, CLIPConfig, SiglipConfig

from references.vision import channels_last, images
from references.weights import randomize, save_gradients, save_weights

VOCAB, LENGTH, EOS = 50, 11, 49
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def texts(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask): of different lengths, each ending in EOS and then filled up."""
    tokens = torch.randint(2, EOS, (rows, LENGTH), generator=torch.Generator().manual_seed(4))
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    for row in range(rows):
        length = LENGTH - row % 5
        tokens[row, length - 1], tokens[row, length:], mask[row, length:] = EOS, 1, 0
    return tokens, mask


def write(config, folder: Path, *, std: float, masked: bool) -> None:
    """masked: whether the text tower is told which tokens are filling; SigLIP is not, it was
    trained to see them."""
    model = AutoModel.from_config(config, attn_implementation="eager").float().eval()
    randomize(model, std=std)
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
    save_weights(model, folder)
    pixels, (tokens, mask) = images(1, 5, 3, 12, 12), texts(5)
    options = {"attention_mask": mask} if masked else {}
    out = model(input_ids=tokens, pixel_values=pixels, return_loss=True, output_hidden_states=True, **options)
    out.loss.backward()
    arrays = {
        "image": channels_last(pixels),
        "tokens": tokens,
        "mask": mask if masked else torch.ones_like(mask),
        "image_embeds": out.image_embeds,
        "text_embeds": out.text_embeds,
        "logits": out.logits_per_image,
        "loss": out.loss,
    }
    for tower in ("vision", "text"):
        states = getattr(out, f"{tower}_model_output").hidden_states
        if states is not None:
            arrays |= {f"{tower}_states/{n}": h for n, h in enumerate(states)}
    save_gradients(model, folder)
    arrays = {n: x.detach().numpy() if isinstance(x, torch.Tensor) else x for n, x in arrays.items()}
    np.savez_compressed(folder / "reference.npz", **arrays)


VISION = {"image_size": 12, "patch_size": 4, **SIZES}
TEXT = {"vocab_size": VOCAB, "max_position_embeddings": 13, "eos_token_id": EOS, "bos_token_id": 0, **SIZES}
IMAGE_TEXT = {
    "clip": functools.partial(
        write, CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16), std=0.15, masked=True
    ),
    "siglip": functools.partial(write, SiglipConfig(text_config=TEXT, vision_config=VISION), std=0.15, masked=False),
}
