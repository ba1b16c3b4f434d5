"""Image classifiers of transformers: tiny, random, and everything that a parity test asks of
them."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    ResNetConfig,
    ViTConfig,
)

from references.weights import randomize, save_gradients, save_weights

CLASSES = 7
STEPS = 20


def images(seed: int, *shape: int) -> torch.Tensor:
    """(..., C, H, W), of standard deviation 1."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(seed))


def channels_last(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().movedim(-3, -1).numpy())


def loss_of(model, pixels: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, label)


def train(model, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Takes 20 AdamW steps, clipped. Only matrices and kernels decay."""
    batches = images(11, 4, 4, *shape).repeat(STEPS // 4, 1, 1, 1, 1)  # four batches over and over
    targets = labels(12, 4, 4).repeat(STEPS // 4, 1)
    undecayed = ("cls_token", "register_tokens", "position_embeddings")
    named = list(model.named_parameters())
    decay = [p for n, p in named if p.ndim >= 2 and not n.endswith(undecayed)]
    rest = [p for n, p in named if p.ndim < 2 or n.endswith(undecayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    losses = []
    for pixels, target in zip(batches, targets, strict=True):
        optimizer.zero_grad()
        loss = loss_of(model, pixels, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    arrays = {"image": channels_last(batches[:4]), "label": targets[:4].numpy(), "losses": np.array(losses)}
    return {f"train/{name}": x for name, x in arrays.items()}


def forward(model, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = model(pixel_values=pixels, output_hidden_states=True)
    states = [channels_last(h) if h.ndim == 4 else h.numpy() for h in out.hidden_states]
    return {"logits": out.logits.numpy()} | {f"hidden_states/{n}": h for n, h in enumerate(states)}


def statistics(model) -> None:
    """Running statistics away from the zeros and ones that they start at."""
    generator = torch.Generator().manual_seed(3)
    for name, buffer in model.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * noise)
        elif name.endswith("running_var"):
            buffer.copy_(torch.exp(0.3 * noise))


def write_encoder(config, folder: Path, *, shape: tuple[int, ...], batch: int, std: float) -> None:
    """Writes the states of all tokens, and gradients of the mean of their squares."""
    model = Dinov2Model._from_config(config, attn_implementation="eager").float().eval()
    randomize(model, std=std)
    save_weights(model, folder)
    pixels = images(1, batch, *shape)
    out = model(pixel_values=pixels)
    out.last_hidden_state.square().mean().backward()
    arrays = {"hidden": out.last_hidden_state.detach().numpy(), "pooled": out.pooler_output.detach().numpy()}
    save_gradients(model, folder)
    np.savez_compressed(folder / "reference.npz", image=channels_last(pixels), **arrays)


def write(config, folder: Path, *, shape: tuple[int, ...], batch: int, std: float, training: bool = False) -> None:
    """Writes logits and hidden states as in evaluation, and loss and gradients as in training.
    shape: (C, H, W)."""
    model = AutoModelForImageClassification.from_config(config, attn_implementation="eager").float().eval()
    randomize(model, std=std)
    statistics(model)
    save_weights(model, folder)
    pixels, label = images(1, batch, *shape), labels(2, batch)
    arrays = {"image": channels_last(pixels), "label": label.numpy()} | forward(model, pixels)
    loss = loss_of(model.train(), pixels, label)
    loss.backward()
    arrays["loss"] = loss.detach().numpy()
    arrays |= {f"running/{n}": b.numpy() for n, b in model.named_buffers() if "running" in n}
    save_gradients(model, folder)
    if training:
        arrays |= train(model, shape)
    np.savez_compressed(folder / "reference.npz", **arrays)


VIT = ViTConfig(
    image_size=(12, 16),  # neither square, nor an even number of tokens
    patch_size=4,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    num_labels=CLASSES,
)
DINOV2 = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layerscale_value": 0.7,
    "num_labels": CLASSES,
}
DINO = {"shape": (3, 12, 12), "batch": 3, "std": 0.15}
RESNET = {"embedding_size": 8, "num_labels": CLASSES}
VISION = {
    "vit": functools.partial(write, VIT, shape=(3, 12, 16), batch=3, std=0.15, training=True),
    "dinov2": functools.partial(
        write, Dinov2Config(**DINOV2, mlp_ratio=2, use_mask_token=False), **DINO, training=True
    ),
    "dinov2-encoder": functools.partial(
        write_encoder, Dinov2Config(**DINOV2, mlp_ratio=2, use_mask_token=False), **DINO
    ),
    "dinov2_registers": functools.partial(
        write, Dinov2WithRegistersConfig(**DINOV2, mlp_ratio=3, use_swiglu_ffn=True, num_register_tokens=3), **DINO
    ),
    "resnet": functools.partial(
        write,
        ResNetConfig(hidden_sizes=[16, 24, 32], depths=[1, 2, 1], **RESNET),
        shape=(3, 33, 38),
        batch=4,
        std=0.25,
    ),
    "resnet_basic": functools.partial(
        write,
        ResNetConfig(hidden_sizes=[8, 12, 16], depths=[2, 1, 1], layer_type="basic", **RESNET),
        shape=(3, 32, 37),
        batch=4,
        std=0.15,
    ),
}
