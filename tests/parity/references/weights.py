"""Random weights in which every parameter matters, and weights and gradients written as a Hugging
Face folder."""

import copy
import shutil
import tempfile
from pathlib import Path

import torch


def randomize(model, seed: int = 0, std: float = 0.15) -> None:
    """Matrices far from zero; vectors (norms, biases) away from the ones and zeros that they start
    at."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * std if p.ndim >= 2 else p + 0.1 * noise)


def save_weights(model, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)


def save_gradients(model, folder: Path) -> None:
    """Gradients under the names that a saved model gives its parameters, whatever it calls them in
    memory."""
    holder = copy.deepcopy(model)
    with torch.no_grad():
        for p, q in zip(holder.parameters(), model.parameters(), strict=True):
            p.copy_(torch.zeros_like(p) if q.grad is None else q.grad)
    with tempfile.TemporaryDirectory() as scratch:
        save_weights(holder, Path(scratch))
        shutil.copyfile(Path(scratch) / "model.safetensors", folder / "gradients.safetensors")
