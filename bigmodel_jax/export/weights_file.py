"""Writes arrays as safetensors: weights.safetensors, or several files of at most 5 GiB each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SHARD_BYTES = 5 * 1024**3


def save_weights(weights: Mapping[str, Any], folder: Path) -> None:
    """Writes the arrays by their names. The arrays of one file at a time are in host memory."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, x in weights.items():
        if size and size + x.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += x.nbytes
    for n, names in enumerate(shards):
        number = "" if len(shards) == 1 else f"-{n + 1:05}-of-{len(shards):05}"
        # `np.asarray` copies the arrays of this file from the devices and waits for them.
        tensors = {name: np.asarray(weights[name], order="C") for name in names}
        save_file(tensors, folder / f"weights{number}.safetensors")
