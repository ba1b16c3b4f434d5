"""SegFormer of transformers: tiny, random, and everything that a parity test asks of it."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from references.vision import STEPS, channels_last, images, statistics
from references.weights import randomize, save_gradients, save_weights

CLASSES = 7
IGNORED = 255


def masks(seed: int, *shape: int) -> torch.Tensor:
    """Draws the class of each pixel; a tenth of the pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, CLASSES, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.1, IGNORED, found)


def train(model, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """20 AdamW steps, decay on matrices and kernels alone, clipped; batch norm reads each batch."""
    batches = images(11, 4, 2, *shape).repeat(STEPS // 4, 1, 1, 1, 1)
    targets = masks(12, 4, 2, *shape[1:]).repeat(STEPS // 4, 1, 1, 1)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95)), []
    for pixels, target in zip(batches, targets, strict=True):
        optimizer.zero_grad()
        loss = model(pixel_values=pixels, labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    arrays = {"image": channels_last(batches[:4]), "mask": targets[:4].byte().numpy(), "losses": np.array(losses)}
    return {f"train/{name}": x for name, x in arrays.items()}


def write(config, folder: Path, *, shape: tuple[int, ...], batch: int, std: float) -> None:
    """Writes logits and the stages' states as in evaluation, and loss and gradients as in training.
    shape: (C, H, W)."""
    model = SegformerForSemanticSegmentation._from_config(config, attn_implementation="eager").float().eval()
    randomize(model, std=std)
    statistics(model)
    save_weights(model, folder)
    pixels, target = images(1, batch, *shape), masks(2, batch, *shape[1:])
    with torch.no_grad():
        out = model(pixel_values=pixels, labels=target, output_hidden_states=True)
    arrays = {"image": channels_last(pixels), "mask": target.byte().numpy(), "logits": channels_last(out.logits)}
    arrays |= {f"hidden_states/{n}": channels_last(h) for n, h in enumerate(out.hidden_states)}
    arrays["loss_eval"] = out.loss.numpy()
    loss = model.train()(pixel_values=pixels, labels=target).loss
    loss.backward()
    arrays["loss"] = loss.detach().numpy()
    arrays |= {f"running/{n}": b.numpy().copy() for n, b in model.named_buffers() if "running" in n}
    save_gradients(model, folder)
    np.savez_compressed(folder / "reference.npz", **arrays | train(model, shape))


SEGFORMER = SegformerConfig(
    num_encoder_blocks=3,
    depths=[1, 2, 1],
    sr_ratios=[4, 2, 1],
    hidden_sizes=[8, 16, 24],
    patch_sizes=[7, 3, 3],
    strides=[4, 2, 2],
    num_attention_heads=[1, 2, 3],
    mlp_ratios=[2, 3, 2],
    decoder_hidden_size=16,
    hidden_dropout_prob=0.0,
    classifier_dropout_prob=0.0,
    drop_path_rate=0.0,
    num_labels=CLASSES,
)
# Neither square, nor a multiple of what the stages divide by.
SEGMENTATION = {"segformer": functools.partial(write, SEGFORMER, shape=(3, 29, 42), batch=2, std=0.25)}
