"""torchvision's AlexNet and VGG, written out in torch.nn modules with its state-dict names, tiny
and random."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from references.vision import CLASSES, channels_last, images, labels, statistics
from references.vision import train as train_of
from references.weights import randomize

ALEXNET = {
    "architectures": ["AlexNet"],
    "model_type": "alexnet",
    "image_shape": [95, 63, 3],  # 2 x 1 pixels are left, which the averaging spreads
    "num_classes": CLASSES,
    "channels": [8, 12, 16, 12, 10],
    "pooled_side": 6,
    "hidden_dim": 24,
    "dropout": 0.0,
}
VGG = {
    "architectures": ["VGG"],
    "model_type": "vgg",
    "image_shape": [44, 33, 3],  # 11 x 8 pixels are averaged to 7 x 7, in bins that overlap
    "num_classes": CLASSES,
    "depths": [1, 2],
    "channels": [8, 12],
    "batch_norm": False,
    "pooled_side": 7,
    "hidden_dim": 24,
    "dropout": 0.0,
}


class AlexNet(nn.Module):
    """torchvision/models/alexnet.py, with the channels and the sides of a config."""

    def __init__(self, config: dict):
        super().__init__()
        a, b, c, d, e = config["channels"]
        hidden, side, dropout = config["hidden_dim"], config["pooled_side"], config["dropout"]
        self.features = nn.Sequential(
            nn.Conv2d(config["image_shape"][2], a, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(a, b, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(b, c, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, e, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout),
            nn.Linear(e * side * side, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, config["num_classes"]),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class VGGNet(nn.Module):
    """torchvision/models/vgg.py, with the depths, channels and sides of a config."""

    def __init__(self, config: dict):
        super().__init__()
        layers, inputs = [], config["image_shape"][2]
        for depth, channels in zip(config["depths"], config["channels"], strict=True):
            for _ in range(depth):
                layers.append(nn.Conv2d(inputs, channels, kernel_size=3, padding=1))
                layers += [nn.BatchNorm2d(channels)] if config["batch_norm"] else []
                layers.append(nn.ReLU(inplace=True))
                inputs = channels
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        hidden, side, dropout = config["hidden_dim"], config["pooled_side"], config["dropout"]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(inputs * side * side, hidden),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            nn.Linear(hidden, config["num_classes"]),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


NETWORKS = {"AlexNet": AlexNet, "VGG": VGGNet}


def load(folder: Path, config: dict) -> nn.Module:
    """A network with the weights of an exported folder; a tensor that is missing or unknown is an
    error."""
    model = NETWORKS[config["architectures"][0]](config)
    missing, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    wrong = [name for name in (*missing, *unknown) if not name.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(", ".join(wrong))
    return model.eval()


class Answer(nn.Module):
    """A network called as one of transformers."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor):
        return type("Output", (), {"logits": self.network(pixel_values)})


def save(table: dict, path: Path) -> None:
    save_file({name: x.detach().clone().contiguous() for name, x in table.items()}, path)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients by the names of the state dict; a tensor without a gradient stands as it
    is."""
    return model.state_dict() | {name: p.grad for name, p in model.named_parameters()}


def write(config: dict, folder: Path, *, std: float = 0.15, curve: bool = True) -> None:
    """Writes logits as in evaluation, loss and gradients as in training, also with batch norm as in
    evaluation, and 20 steps."""
    model = NETWORKS[config["architectures"][0]](config).eval()
    randomize(model, std=std)
    statistics(model)
    save(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    height, width, channels = config["image_shape"]
    pixels, label = images(1, 4, channels, height, width), labels(2, 4)
    with torch.no_grad():
        arrays = {"image": channels_last(pixels), "label": label.numpy(), "logits": model(pixels).numpy()}
    for suffix, mode in (("_eval", False), ("", True)):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model.train(mode)(pixels), label)
        loss.backward()
        arrays[f"loss{suffix}"] = loss.detach().numpy()
        if not suffix or config.get("batch_norm"):
            save(gradients(model), folder / f"gradients{suffix}.safetensors")
    arrays |= {f"running/{n}": b.numpy().copy() for n, b in model.named_buffers() if "running" in n}
    arrays |= train_of(Answer(model), (channels, height, width)) if curve else {}
    np.savez_compressed(folder / "reference.npz", **arrays)


TORCHVISION = {
    # No curve: with a std of 0.15 its loss rose from 10 to 18, and rounding errors grew to 0.1 in
    # 20 steps.
    "alexnet": functools.partial(write, ALEXNET, std=0.125, curve=False),
    "vgg": functools.partial(write, VGG),
    "vgg_bn": functools.partial(write, VGG | {"batch_norm": True}),
}
