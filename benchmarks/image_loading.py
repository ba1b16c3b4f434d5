"""Images per second of the loader beside Pillow's decoder, and how long training waits for files.

    uv run --extra digits benchmarks/image_loading.py [--files 512] [--rounds 5] [--steps 30]
        [--batch 32]

The files are random crops of scikit-learn's two photographs, with shorter sides of 300 to 600
pixels, as in ImageNet; images have 224 x 224. The upper bound decodes the same files into RGB, with
one thread per core, and does nothing else. The table's rows take turns, so that other load on the
machine affects all. Rates are printed for wall-clock time, and for the processor time of all cores,
which says more on a machine that other programs use. Then a small ResNet is trained on the files;
the waiting share comes from its metrics, without the first record.
"""

import argparse
import concurrent.futures
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images

from bigmodel_jax import runtime
from bigmodel_jax.config import Config, EvalConfig, ReportConfig, TrainConfig
from bigmodel_jax.data import ImageData, ImageFolders
from bigmodel_jax.data.images import pictures, threads
from bigmodel_jax.data.images.augment import Colour, Erase, Flip, RandomResizedCrop
from bigmodel_jax.data.images.mix import CutMix, Mixup
from bigmodel_jax.data.images.rand_augment import RandAugment
from bigmodel_jax.data.loader import Sampler
from bigmodel_jax.models import ResNetConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training.run import train

SIZE, CLASSES = 224, 2
CROP = (RandomResizedCrop(), Flip())
ROWS = {
    "crop, flip": CROP,
    "crop, flip, RandAugment": (*CROP, RandAugment()),
    "crop, flip, colour, erasing": (*CROP, Colour(), Erase()),
}


def make_files(folder: Path, count: int) -> list[Path]:
    """Writes JPEG files in one class per photograph, and 16 for validation; returns the training
    files."""
    rng, photos, paths = np.random.default_rng(0), load_sample_images().images, []
    for number in range(count + 16):
        split, label = "train" if number < count else "validation", number % CLASSES
        photo = Image.fromarray(photos[label])
        short, aspect = int(rng.integers(300, 601)), float(np.exp(rng.uniform(-0.4, 0.4)))
        width, height = (round(short * max(aspect, 1)), round(short / min(aspect, 1)))
        side = rng.uniform(0.5, 1.0) * min(photo.width / width, photo.height / height)
        box = (int(width * side), int(height * side))
        left, top = int(rng.integers(photo.width - box[0] + 1)), int(rng.integers(photo.height - box[1] + 1))
        part = photo.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + box[0], top + box[1]))
        paths.append(folder / split / f"class{label}" / f"{number}.jpg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        part.save(paths[-1], quality=int(rng.integers(75, 96)))
    return paths[:count]


def data_of(folder: Path, **more) -> ImageData:
    source = ImageFolders(str(folder / "train"), str(folder / "validation"))
    return ImageData(source=source, num_classes=CLASSES, image_size=SIZE, cache_dir=str(folder / "cache"), **more)


def ceiling(paths: list[Path]) -> Callable[[], None]:
    def decode(path: Path) -> None:
        Image.open(io.BytesIO(path.read_bytes())).convert("RGB")

    pool = concurrent.futures.ThreadPoolExecutor(threads.CORES)
    return lambda: list(pool.map(decode, paths))


def scaling(paths: list[Path]) -> Callable[[], None]:
    """Like `ceiling`, but decodes and resizes random crops: the cost of training's views without a
    loader."""
    crop, pool = RandomResizedCrop(), concurrent.futures.ThreadPoolExecutor(threads.CORES)

    def cut(number: int) -> None:
        pictures.view(paths[number].read_bytes(), "it", SIZE, lambda width, height: crop.box(width, height, number))

    return lambda: list(pool.map(cut, range(len(paths))))


def loading(data: ImageData, count: int, batch: int) -> Callable[[], None]:
    sampler = Sampler(data.open("train"), batch, 0)
    return lambda: [sampler.local(number) for number in range(count // batch)]


def table(folder: Path, paths: list[Path], rounds: int, batch: int) -> None:
    sides = {"Pillow's decoder alone": ceiling(paths), "decoding and scaling of parts alone": scaling(paths)}
    sides["evaluation's view"] = _evaluation(data_of(folder), len(paths), batch)
    sides |= {name: loading(data_of(folder, augment=changes), len(paths), batch) for name, changes in ROWS.items()}
    mixing = data_of(folder, augment=CROP, mix=(Mixup(), CutMix()), normalise="train")
    sides["crop, flip, mixup, CutMix, mean and spread"] = loading(mixing, len(paths), batch)
    rates = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            begin, computing = time.perf_counter(), time.process_time()
            work()
            wall, cores = time.perf_counter() - begin, time.process_time() - computing
            rates[name].append((len(paths) / wall, threads.CORES * len(paths) / cores))
    print(f"{len(paths)} files, {threads.CORES} threads, medians of {rounds} rounds")
    print(f"{'':45} {'images/s':>10} {'share':>6}  {'of computing':>13} {'share':>6}")
    top = rates["Pillow's decoder alone"]
    for name, found in rates.items():
        cells = [(_median(found, kind), _shares(found, top, kind)) for kind in (0, 1)]
        print(f"{name:45} {cells[0][0]:10.1f} {cells[0][1]:6.2f}  {cells[1][0]:13.1f} {cells[1][1]:6.2f}")


def _median(found: list[tuple[float, float]], kind: int) -> float:
    return statistics.median(one[kind] for one in found)


def _shares(found: list[tuple[float, float]], top: list[tuple[float, float]], kind: int) -> float:
    return statistics.median(one[kind] / most[kind] for one, most in zip(found, top, strict=True))


def _evaluation(data: ImageData, count: int, batch: int) -> Callable[[], None]:
    rows = data.open("train")
    return lambda: [rows.batch(np.arange(i, i + batch), None) for i in range(0, count, batch)]


def waiting(folder: Path, steps: int, batch: int) -> None:
    model = ResNetConfig(
        image_shape=(SIZE, SIZE, 3), num_classes=CLASSES, depths=(1, 1, 1, 1), channels=(16, 32, 64, 128), block="basic"
    )
    config = Config(
        model,
        Classification(),
        data_of(folder, augment=CROP, normalise="train"),
        train=TrainConfig(steps=steps, batch_size=batch, log_every=5),
        eval=EvalConfig(every=steps),
        report=ReportConfig(tensorboard=False),
    )
    train(config, folder / "run", Stages(Console(quiet=True)))
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    found = [one for one in map(json.loads, lines) if one.get("step_seconds")][1:]
    step, wait = (sum(one[name] for one in found) for name in ("step_seconds", "data_wait_seconds"))
    print(
        f"a ResNet of 10 layers, batches of {batch}: {1000 * step / len(found):.0f} ms a step, "
        f"of which the loop waits {100 * wait / step:.1f} % for data"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("files", 512), ("rounds", 5), ("steps", 30), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    runtime.keep_memory()
    runtime.keep_programs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_files(folder, args.files)
        table(folder, paths, args.rounds, args.batch)
        waiting(folder, args.steps, args.batch)


if __name__ == "__main__":
    main()
