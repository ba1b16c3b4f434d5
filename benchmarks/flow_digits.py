"""The share of digits drawn by a run that a classifier, trained by another run, recognizes.

    uv run launch.py train configs/mnist_cnn.py --run_dir runs/cnn
    uv run launch.py train configs/flow_digits.py --run_dir runs/flow
    uv run benchmarks/flow_digits.py runs/flow runs/cnn

Each class is drawn `--each` times, from different noise, with the sampler of the run's objective
and its eval.images. If the run keeps an average of its weights, that average is used.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from bigmodel_jax import config_file
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.inference.sample_images import sample_images
from bigmodel_jax.report.picture_grid import write_grid
from bigmodel_jax.training.saved import load_weights

ROWS = 100  # images per batch


def opened(run: Path) -> tuple:
    """(config, weights in the compute dtype) of a run's newest checkpoint, on one device."""
    config = config_file.load(run)
    mesh = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    weights, _ = load_weights(config, run, mesh)
    return config, cast(weights, config.precision.compute)


def drawn(config, weights, labels: np.ndarray, seed: int) -> np.ndarray:
    """Images (N, H, W, C) float32 in [0, 1], drawn for these labels."""
    rng, model, out = np.random.default_rng(seed), config.make_model(), []
    for start in range(0, len(labels), ROWS):
        part = labels[start : start + ROWS]
        noise = rng.standard_normal((len(part), *config.model.image_shape), np.float32)
        out.append(sample_images(model, weights, config.objective, {"label": part}, noise, config.eval.images))
        print(f"{start + len(part)}/{len(labels)} drawn", flush=True)
    return np.concatenate(out)


def named(config, weights, images: np.ndarray) -> np.ndarray:
    """(N,): the class that the classifier finds likeliest for each image."""
    apply = jax.jit(lambda batch: config.make_model().apply(weights, batch).value)
    parts = [np.asarray(apply({"image": images[n : n + ROWS]})) for n in range(0, len(images), ROWS)]
    return np.concatenate(parts).argmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of configs/flow_digits.py")
    parser.add_argument("judge", type=Path, help="a run of configs/mnist_cnn.py")
    parser.add_argument("--each", type=int, default=100, help="images of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a PNG of the first ten images of each class")
    args = parser.parse_args()
    config, weights = opened(args.run)
    labels = np.tile(np.arange(config.model.num_classes, dtype=np.int32), args.each)
    start = time.perf_counter()
    images = drawn(config, weights, labels, args.seed)
    seconds = time.perf_counter() - start
    right = named(*opened(args.judge), images) == labels
    for label in range(config.model.num_classes):
        print(f"{label}: {right[labels == label].mean():.1%} of {args.each}")
    print(f"all: {right.mean():.2%} of {len(labels)} named rightly, drawn in {seconds:.0f} s ({config.eval.images})")
    if args.sheet:
        write_grid(args.sheet, images[:100], [str(label) for label in labels[:100]])


if __name__ == "__main__":
    main()
