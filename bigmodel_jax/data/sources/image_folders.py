"""Image folders, one folder per class, as torchvision's ImageFolder reads them."""

import dataclasses
from pathlib import Path

from bigmodel_jax.core import paths
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class ImageFolders(Source):
    """Each of `train` and `validation` is a folder with one folder per class, which holds its
    images.

    Images may lie at any depth. Classes are numbered in the order of their names in `train`. Where
    `data.image_size` is 0, images are scaled by their shorter side to this source's `image_size`,
    and cut at the centre. Names that begin with a dot are left out. Any other file that is no image
    is a bad record.
    """

    train: str = ""
    "folder of the training images, also in a bucket"
    validation: str = ""
    "folder of the validation images"
    image_size: Count = 224
    "side in pixels of images that are decoded once"

    def labels(self) -> tuple[str, ...]:
        folder = self._folder("train")
        if paths.is_remote(folder):
            return tuple(dict.fromkeys(label for _, label, _ in _in_bucket(folder)))
        return tuple(inner.name for inner in _visible(folder) if inner.is_dir())

    def has(self, split, root):
        return bool(getattr(self, split, ""))

    def made_from(self, split, root):
        return [path for path, *_ in self._pictures(split)]

    def fingerprint(self, split, root):
        """Hash names, sizes and modification times of the images instead of their content."""
        folder = self._folder(split)
        # A bucket's listing has the stats. Asking for each file would cost one request per image.
        stats = [
            (str(path.relative_to(folder)), *(stat or paths.stat(path))) for path, _, stat in self._pictures(split)
        ]
        return cache.key(self.image_size, self.labels(), stats)

    def encoded(self, split, root, bad):
        numbers = {name: number for number, name in enumerate(self.labels())}
        for path, label, _ in self._pictures(split):
            if label in numbers:
                yield str(path), {"image": path, "label": numbers[label]}
            else:
                bad.skip(str(path), f"class {label!r} is not in data.source.train{nearest(label, numbers)}")

    def records(self, split, root, bad):
        for where, record in self.encoded(split, root, bad):
            try:
                image = pictures.square(pictures.read(record["image"]), self.image_size)
            except ValueError as error:
                bad.skip(where, str(error))
                continue
            yield where, record | {"image": image}

    def _pictures(self, split: str) -> list[tuple[Path, str, paths.Stat | None]]:
        """Return (file, class, its stat where the listing gave it) in the order of names."""
        folder = self._folder(split)
        if paths.is_remote(folder):
            found = _in_bucket(folder)
        else:
            classes = [inner for inner in _visible(folder) if inner.is_dir()]
            found = [(path, inner.name, None) for inner in classes for path in _files(inner)]
        # Empty class folders are no error here: the caller reports a split without examples.
        if not found and (paths.is_remote(folder) or not classes):
            raise ValueError(f"data.source.{split}: {getattr(self, split)!r} holds no folders; each class needs one")
        return found

    def _folder(self, split: str) -> Path:
        option = f"data.source.{split}"
        given = getattr(self, split)
        if paths.is_remote(given):
            return paths.remote(given)
        path = paths.expanded(option, given) if given else None
        if path is None or not path.is_dir():
            raise ValueError(f"{option}: {getattr(self, split)!r} is not a folder")
        return path


def _in_bucket(folder: Path) -> list[tuple[Path, str, paths.Stat]]:
    """Return (file, class, stat) from one listing of the bucket."""
    below = sorted((name.split("/"), stat) for name, stat in paths.below(folder).items())
    return [
        (folder / "/".join(parts), parts[0], stat)
        for parts, stat in below
        if len(parts) > 1 and not any(part.startswith(".") for part in parts)
    ]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder in the order of names.

    A link to a folder is not followed, because it may lead back to a folder above.
    """
    found = []
    for path in _visible(folder):
        if path.is_dir():
            found += [] if path.is_symlink() else _files(path)
        else:
            found.append(path)
    return found
