"""EfficientNet-lite as plain torch functions over the published names of its weights, after the
paper and its blocks."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from references.vision import CLASSES, channels_last, images, labels

CONFIG = {
    "architectures": ["EfficientNetLite"],
    "model_type": "efficientnet_lite",
    "image_shape": [33, 38, 3],
    "num_classes": CLASSES,
    "repeats": [1, 2, 2],
    "widths": [3, 5, 3],
    "strides": [1, 2, 2],
    "expansions": [1, 4, 3],
    "channels": [8, 12, 16],
    "stem_channels": 8,
    "head_channels": 24,
    "dropout": 0.0,
    "momentum": 0.99,
}


def blocks(config) -> list[tuple[int, int, int, int, int]]:
    """(width, stride, expansion, inputs, outputs) of every block."""
    out, inputs = [], config["stem_channels"]
    names = ("repeats", "widths", "strides", "expansions", "channels")
    for repeats, k, s, e, c in zip(*(config[name] for name in names), strict=True):
        for n in range(repeats):
            out.append((k, s if n == 0 else 1, e, inputs, c))
            inputs = c
    return out


def weights(config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = {}

    def conv_norm(conv, norm, outputs, inputs, k):
        out[f"{conv}.weight"] = torch.randn(outputs, inputs, k, k, generator=generator) * (2 / (inputs * k * k)) ** 0.5
        for name, base, noise in (("weight", 1.0, 0.1), ("bias", 0.5, 0.1), ("running_mean", 0.0, 0.1)):
            out[f"{norm}.{name}"] = base + noise * torch.randn(outputs, generator=generator)
        out[f"{norm}.running_var"] = torch.exp(0.3 * torch.randn(outputs, generator=generator))

    conv_norm("_conv_stem", "_bn0", config["stem_channels"], 3, 3)
    for n, (k, _, e, inputs, outputs) in enumerate(blocks(config)):
        b = f"_blocks.{n}."
        if e > 1:
            conv_norm(b + "_expand_conv", b + "_bn0", e * inputs, inputs, 1)
        conv_norm(b + "_depthwise_conv", b + "_bn1", e * inputs, 1, k)
        conv_norm(b + "_project_conv", b + "_bn2", outputs, e * inputs, 1)
    conv_norm("_conv_head", "_bn1", config["head_channels"], outputs, 1)
    out["_fc.weight"] = torch.randn(CLASSES, config["head_channels"], generator=generator) * 0.5
    out["_fc.bias"] = torch.randn(CLASSES, generator=generator) * 0.1
    return out


def conv_norm(w, conv, norm, x, *, stride=1, groups=1, train):
    k = w[f"{conv}.weight"].shape[-1]
    # TensorFlow's "SAME": ceil(size / stride) outputs, the odd pixel of padding at the end.
    missing = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in x.shape[-2:]]
    x = F.pad(x, [m for n in reversed(missing) for m in (n // 2, n - n // 2)])
    x = F.conv2d(x, w[f"{conv}.weight"], stride=stride, groups=groups)
    mean, var = w[f"{norm}.running_mean"].clone(), w[f"{norm}.running_var"].clone()
    return F.batch_norm(x, mean, var, w[f"{norm}.weight"], w[f"{norm}.bias"], train, 0.01, 1e-3)


def forward(w, x, train=False, config=CONFIG):
    x = F.relu6(conv_norm(w, "_conv_stem", "_bn0", x, stride=2, train=train))
    for n, (_, stride, e, inputs, outputs) in enumerate(blocks(config)):
        b, y = f"_blocks.{n}.", x
        if e > 1:
            y = F.relu6(conv_norm(w, b + "_expand_conv", b + "_bn0", y, train=train))
        y = conv_norm(w, b + "_depthwise_conv", b + "_bn1", y, stride=stride, groups=e * inputs, train=train)
        y = conv_norm(w, b + "_project_conv", b + "_bn2", F.relu6(y), train=train)
        x = x + y if stride == 1 and inputs == outputs else y
    x = F.relu6(conv_norm(w, "_conv_head", "_bn1", x, train=train)).mean((2, 3))
    return F.linear(x, w["_fc.weight"], w["_fc.bias"])


def write(folder: Path) -> None:
    w = weights(CONFIG)
    save_file(w, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    pixels, label = images(1, 4, 3, 33, 38), labels(2, 4)
    leaves = {name: x.requires_grad_("running" not in name) for name, x in w.items()}
    with torch.no_grad():
        logits = forward(leaves, pixels)
    arrays = {"image": channels_last(pixels), "label": label.numpy(), "logits": logits.numpy()}
    # Statistics of the batch, then the running ones.
    for suffix, train in (("", True), ("_eval", False)):
        for x in leaves.values():
            x.grad = None
        loss = F.cross_entropy(forward(leaves, pixels, train), label)
        loss.backward()
        arrays[f"loss{suffix}"] = loss.detach().numpy()
        gradients = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}
        save_file(gradients, folder / f"gradients{suffix}.safetensors")
    np.savez_compressed(folder / "reference.npz", **arrays)


EFFICIENTNET = {"efficientnet": write}
