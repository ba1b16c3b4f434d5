"""Language models that read images, of transformers: tiny, random, and everything that a parity
test asks of them."""

import functools
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from references.steps import trained
from references.vision import images
from references.weights import randomize, save_gradients, save_weights

VOCAB, IMAGE = 96, 95
ROWS, BEFORE, PROMPT, ANSWER = 2, 2, 3, 6  # tokens before the image, behind it, and of the answer
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {
    "vocab_size": VOCAB,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    **SIZES,
}
VISION = {"image_size": 12, "patch_size": 4, **SIZES}


def row_tokens(image_tokens: int) -> torch.Tensor:
    """(ROWS, T): text, the image's places, the prompt and its answer."""
    generator = torch.Generator().manual_seed(1)

    def text(length: int) -> torch.Tensor:
        return torch.randint(1, IMAGE, (ROWS, length), generator=generator)

    image = torch.full((ROWS, image_tokens), IMAGE)
    return torch.cat([text(BEFORE), image, text(PROMPT), text(ANSWER)], dim=1)


def published_names(path: Path) -> None:
    """The tensors of a file under the names that the published files give their tower."""
    tensors = load_file(path)
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): x for name, x in tensors.items()}
    save_file(renamed, path, metadata={"format": "pt"})


def inputs(model, pixels: torch.Tensor, tokens: torch.Tensor, prompt: int, prefix: bool) -> dict:
    """prompt: how many tokens come before the answer; prefix: whether the model is told of it."""
    given = {"input_ids": tokens, "pixel_values": pixels}
    kinds = (torch.arange(tokens.shape[1]) >= prompt).long().expand_as(tokens)
    return given | ({"token_type_ids": kinds} if prefix else {})


def answer_loss(model, given: dict) -> torch.Tensor:
    logits = model(**given, use_cache=False).logits[:, -ANSWER - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), given["input_ids"][:, -ANSWER:].reshape(-1))


def padded(model, given: dict) -> dict[str, np.ndarray]:
    """The batch whose second row begins with two tokens of padding, before the same text."""
    ids, mask = given["input_ids"].clone(), torch.ones_like(given["input_ids"])
    ids[1] = torch.cat([torch.zeros(2, dtype=torch.long), ids[1, :-2]])
    mask[1, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    more = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if "token_type_ids" in given:
        kinds = given["token_type_ids"].clone()
        kinds[1] = torch.cat([torch.zeros(2, dtype=torch.long), kinds[1, :-2]])
        more["token_type_ids"] = kinds
    logits = model(**given | more, use_cache=False).logits
    found = {"tokens": ids, "mask": mask, "positions": positions, "logits": logits}
    return {f"padded/{name}": x.numpy() for name, x in found.items()}


def greedy(model, given: dict, prompt: int) -> dict[str, np.ndarray]:
    model.generation_config.eos_token_id = None
    cut = {name: x if name == "pixel_values" else x[:, :prompt] for name, x in given.items()}
    mask = torch.ones_like(cut["input_ids"])
    ids = model.generate(**cut, attention_mask=mask, do_sample=False, max_new_tokens=12)
    return {"greedy/tokens": ids[:, prompt:].numpy()}


def write(
    model_class: str, config, folder: Path, *, side: int, tiles: int, tokens: int, prefix=False, training=False
) -> None:
    """Writes the reference. tiles: images in a row, 0 for one without a dimension of its own;
    tokens: places of a row's images."""
    model = getattr(transformers, model_class)._from_config(config, attn_implementation="eager").float().eval()
    randomize(model)
    pixels = images(1, ROWS * max(tiles, 1), 3, side, side)
    pixels = pixels.reshape(ROWS, tiles, 3, side, side) if tiles else pixels
    ids = row_tokens(tokens)
    prompt = ids.shape[1] - ANSWER
    given = inputs(model, pixels, ids, prompt, prefix)
    save_weights(model, folder)
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, use_cache=False)
        arrays = {"logits": result.logits, "hidden_states": torch.stack(result.hidden_states), "tokens": ids}
        arrays = {name: x.numpy() for name, x in arrays.items()} | padded(model, given) | greedy(model, given, prompt)
    arrays |= {"image": np.moveaxis(pixels.numpy(), -3, -1), "prompt": np.array(prompt)}
    loss = answer_loss(model, given)
    loss.backward()
    arrays["loss"] = loss.detach().numpy()
    save_gradients(model, folder)
    for name in ("model.safetensors", "gradients.safetensors"):
        published_names(folder / name)
    if training:

        def step() -> float:
            value = answer_loss(model, given)
            value.backward()
            return value.item()

        arrays["train/losses"] = trained(model, step)
    np.savez_compressed(folder / "reference.npz", **arrays)


def config(name: str, vision: dict, text: dict, **options):
    return getattr(transformers, name)(vision_config=vision, text_config=text, **options)


CLIP, SIGLIP = ({"model_type": f"{name}_vision_model", **VISION} for name in ("clip", "siglip"))
LLAMA, GEMMA = ({"model_type": name, **TEXT} for name in ("llama", "gemma"))
TILED = VISION | {"image_size": 16}
WIDTHS = {"projection_dim": 32, "hidden_size": 32, "vocab_size": VOCAB}
LLAVA = config("LlavaConfig", CLIP, LLAMA, image_token_index=IMAGE, image_seq_length=9)
PALIGEMMA = config("PaliGemmaConfig", SIGLIP | {"vision_use_head": False}, GEMMA, image_token_index=IMAGE, **WIDTHS)
IDEFICS3 = config("Idefics3Config", TILED, LLAMA, image_token_id=IMAGE)
SMOLVLM = config("SmolVLMConfig", TILED, LLAMA, image_token_id=IMAGE, scale_factor=4)
ONE, TILES = {"side": 12, "tiles": 0, "tokens": 9}, {"side": 16, "tiles": 2}

VISION_LANGUAGE = {
    "llava": functools.partial(write, "LlavaForConditionalGeneration", LLAVA, **ONE, training=True),
    "paligemma": functools.partial(write, "PaliGemmaForConditionalGeneration", PALIGEMMA, **ONE, prefix=True),
    "idefics3": functools.partial(write, "Idefics3ForConditionalGeneration", IDEFICS3, **TILES, tokens=8),
    "smolvlm": functools.partial(write, "SmolVLMForConditionalGeneration", SMOLVLM, **TILES, tokens=2),
}
