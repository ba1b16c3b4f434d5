"""Folders of pictures, one folder a class, as torchvision's ImageFolder reads them."""

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
    """`train` and `validation` hold a folder for each class, and in it, at any depth, its pictures.

    Classes are numbered by the order of their names in `train`. Where `data.image_size` is 0, pictures are scaled by their
    shorter side and cut at the centre. Files and folders whose names begin with a dot are left out; what else is no picture
    is a bad record.
    """

    train: str = ""
    validation: str = ""
    image_size: Count = 224
    "pixels a side"

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
        """Of pictures, size and time of change stand for the content."""
        folder = self._folder(split)
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
        """(file, class, its stat where a listing told it) in the order of names."""
        folder = self._folder(split)
        if paths.is_remote(folder):
            found = _in_bucket(folder)
        else:
            classes = [inner for inner in _visible(folder) if inner.is_dir()]
            found = [(path, inner.name, None) for inner in classes for path in _files(inner)]
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
    """(file, class, stat) of one listing."""
    below = sorted((name.split("/"), stat) for name, stat in paths.below(folder).items())
    return [
        (folder / "/".join(parts), parts[0], stat)
        for parts, stat in below
        if len(parts) > 1 and not any(part.startswith(".") for part in parts)
    ]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """All files below, in the order of names; a link to a folder is not followed, so that none is walked for ever."""
    found = []
    for path in _visible(folder):
        if path.is_dir():
            found += [] if path.is_symlink() else _files(path)
        else:
            found.append(path)
    return found
