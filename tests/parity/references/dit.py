"""DiT as plain torch functions over the published names of its weights, after the paper and its
public code.

Written anew from the architecture; positions go through torch's own double-precision sines.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from references.vision import channels_last, images

CONFIG = {
    "architectures": ["DiT"],
    "model_type": "dit",
    "image_shape": [8, 8, 3],
    "num_classes": 7,
    "patch_size": 2,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "label_dropout": 0.1,
    "learn_sigma": True,
}
D, P, C = CONFIG["embed_dim"], CONFIG["patch_size"], CONFIG["image_shape"][2]
OUT, SIDE = 2 * C, CONFIG["image_shape"][0] // CONFIG["patch_size"]


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, std=0.15):
        return torch.randn(shape, generator=generator) * std

    def dense(name, outputs, inputs):
        return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs, std=0.1)}

    out = {"x_embedder.proj.weight": draw(D, C, P, P), "x_embedder.proj.bias": draw(D, std=0.1)}
    out |= dense("t_embedder.mlp.0", D, 256) | dense("t_embedder.mlp.2", D, D)
    out |= {"y_embedder.embedding_table.weight": draw(CONFIG["num_classes"] + 1, D), "pos_embed": positions()[None]}
    for n in range(CONFIG["num_layers"]):
        layer = f"blocks.{n}."
        out |= dense(layer + "attn.qkv", 3 * D, D) | dense(layer + "attn.proj", D, D)
        out |= dense(layer + "mlp.fc1", 4 * D, D) | dense(layer + "mlp.fc2", D, 4 * D)
        out |= dense(layer + "adaLN_modulation.1", 6 * D, D)
    return out | dense("final_layer.adaLN_modulation.1", 2 * D, D) | dense("final_layer.linear", P * P * OUT, D)


def positions() -> torch.Tensor:
    """Sine and cosine of the column, and sine and cosine of the row, each on a quarter of the
    width."""
    frequency = 10_000.0 ** -(torch.arange(D // 4, dtype=torch.float64) / (D // 4))
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angles = [x.reshape(-1, 1).double() * frequency for x in (column, row)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def dense(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def modulated(x, shift, scale):
    return F.layer_norm(x, (D,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def forward(w, x, t, y) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns the network's output (B, 2 C, H, W) and the input of each layer."""
    x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=P).flatten(2).mT + w["pos_embed"]
    angle = t[:, None].float() * torch.exp(-np.log(10_000.0) * torch.arange(128) / 128)
    time = dense(w, "t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=1))
    time = dense(w, "t_embedder.mlp.2", F.silu(time))
    c, states = F.silu(time + w["y_embedder.embedding_table.weight"][y]), []
    for n in range(CONFIG["num_layers"]):
        states.append(x)
        layer = f"blocks.{n}."
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = dense(w, layer + "adaLN_modulation.1", c).chunk(6, dim=1)
        qkv = dense(w, layer + "attn.qkv", modulated(x, shift, scale))
        q, k, v = qkv.unflatten(-1, (3, CONFIG["num_heads"], -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate[:, None] * dense(w, layer + "attn.proj", h)
        h = F.gelu(dense(w, layer + "mlp.fc1", modulated(x, mlp_shift, mlp_scale)), approximate="tanh")
        x = x + mlp_gate[:, None] * dense(w, layer + "mlp.fc2", h)
    x = dense(w, "final_layer.linear", modulated(x, *dense(w, "final_layer.adaLN_modulation.1", c).chunk(2, dim=1)))
    x = x.unflatten(1, (SIDE, SIDE)).unflatten(-1, (P, P, OUT)).permute(0, 5, 1, 3, 2, 4)
    return x.flatten(4).flatten(2, 3), states


def write(folder: Path) -> None:
    w = weights()
    save_file(w, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    pixels, t, y = images(1, 4, C, 8, 8), torch.tensor([0, 3, 500, 999]), torch.tensor([2, 6, 0, 7])
    leaves = {name: x.requires_grad_(name != "pos_embed") for name, x in w.items()}
    out, states = forward(leaves, pixels, t, y)
    noise = images(2, 4, C, 8, 8)
    loss = F.mse_loss(out[:, :C], noise) + out[:, C:].square().mean()  # so that every parameter has a gradient
    loss.backward()
    gradients = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}
    save_file(gradients, folder / "gradients.safetensors")
    arrays = {"image": channels_last(pixels), "noise": channels_last(noise), "logits": channels_last(out)}
    arrays |= {f"states/{n}": x.detach().numpy() for n, x in enumerate(states)}
    arrays |= {"timestep": t.numpy(), "label": y.numpy(), "loss": loss.detach().numpy()}
    np.savez_compressed(folder / "reference.npz", **arrays)


DIT = {"dit": write}
