"""Whether CLIP finds the name that a picture was drawn from, beside real pictures.

    uv run launch.py train configs/clip_emoji.py --run_dir runs/clip
    uv run launch.py train configs/flow_emoji.py --run_dir runs/flow
    uv run benchmarks/flow_emoji.py runs/flow runs/clip --sheet sheet.png

The judge is a run of a small CLIP. A picture is drawn for each name that neither run was trained
on. If the run keeps an average of its weights, that average is used. CLIP ranks all these names for
each picture, and the pictures are counted whose own name is among the first five. The sheet shows
names of the training split first, then held-out ones.
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
from bigmodel_jax.objectives.contrastive import ranks_of
from bigmodel_jax.report.picture_grid import write_grid
from bigmodel_jax.training.saved import load_weights

ROWS = 64  # images per batch
TOLD = ("tokens", "segment_ids")


def opened(run: Path) -> tuple:
    """(config, weights in the compute dtype) of a run's newest checkpoint, on one device."""
    config = config_file.load(run)
    mesh = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    weights, _ = load_weights(config, run, mesh)
    return config, cast(weights, config.precision.compute)


def drawn(config, weights, told: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """Images (N, H, W, 3) float32 in [0, 1], drawn for these texts."""
    num, out = len(told["tokens"]), []
    noise = np.random.default_rng(seed).standard_normal((num, *config.model.image_shape), np.float32)
    for start in range(0, num, ROWS):
        part = {name: x[start : start + ROWS] for name, x in told.items()}
        some = noise[start : start + ROWS]
        out.append(sample_images(config.make_model(), weights, config.objective, part, some, config.eval.images))
        print(f"{start + len(some)}/{num} drawn", flush=True)
    return np.concatenate(out)


def ranks(config, weights, images: np.ndarray, told: dict[str, np.ndarray]) -> np.ndarray:
    """(N,): for each picture, the number of names that CLIP finds nearer than its own."""
    pairs = np.asarray(jax.jit(config.make_model().apply)(weights, {"image": images} | told).value)
    return ranks_of(pairs[:, 0], pairs[:, 1])


def check_tokenizers(config, judge, path: Path) -> None:
    """Ends the program where the judge at `path` reads texts by another tokenizer than the run."""
    ids = [one.data.open_tokenizer().encode_whole("red heart", 9) for one in (config, judge)]
    if ids[0] != ids[1]:
        raise SystemExit(f"{path}: the judge has another tokenizer than the run")


def say_ranks(judge, weights, shown: dict[str, np.ndarray], told: dict[str, np.ndarray]) -> None:
    """Prints the shares of pictures whose own name is first or among five, by kind of picture."""
    for whose, pictures in shown.items():
        rank = ranks(judge, weights, pictures, told)
        print(f"{whose} pictures: own name first {np.mean(rank < 1):.1%}, among five {np.mean(rank < 5):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of configs/flow_emoji.py")
    parser.add_argument("judge", type=Path, help="a run of configs/clip_emoji.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a PNG of 25 names that were trained on, and 25 that were not")
    args = parser.parse_args()
    config, weights = opened(args.run)
    judge, judges = opened(args.judge)
    check_tokenizers(config, judge, args.judge)
    rows = config.data.open("validation")
    batch = rows.batch(np.arange(len(rows)), None)
    told = {name: batch[name] for name in TOLD}
    start = time.perf_counter()
    images = drawn(config, weights, told, args.seed)
    seconds = time.perf_counter() - start
    say_ranks(judge, judges, {"real": batch["image"], "drawn": images}, told)
    print(
        f"chance: among five {5 / len(rows):.1%} of {len(rows)} names; drawn in {seconds:.0f} s ({config.eval.images})"
    )
    if args.sheet:
        trained = config.data.open("train")
        chosen = np.linspace(0, len(trained) - 1, 25).astype(int)
        seen = trained.batch(chosen, None)
        known = drawn(config, weights, {name: seen[name] for name in TOLD}, args.seed)
        held = np.linspace(0, len(rows) - 1, 25).astype(int)
        titles = [trained.texts[i] for i in chosen] + [f"new: {rows.texts[i]}" for i in held]
        write_grid(args.sheet, np.concatenate([known, images[held]]), titles)


if __name__ == "__main__":
    main()
