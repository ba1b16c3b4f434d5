"""Image folders beside mask folders. A mask belongs to the image of the same name."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from bigmodel_jax.core import paths
from bigmodel_jax.data import cache
from bigmodel_jax.data.images import mask_files, pictures
from bigmodel_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class MaskFolders(Source):
    """Each of `train` and `validation` is a folder with the folders `images` and `masks`.

    images/a.jpg belongs to masks/a.png. A mask is a PNG file with one number per pixel, grey or
    with a palette (data/images/mask_files.py). An image without a mask is a bad record, and so is a
    file that is no image. Names that begin with a dot are left out.
    """

    compared: ClassVar = {"train": "training"}

    train: str = ""
    "folder of the training split"
    validation: str = ""
    "folder of the validation split"
    classes: tuple[str, ...] = ()
    "names of the classes in the order of their numbers"

    def labels(self):
        return self.classes

    def has(self, split, root):
        return bool(getattr(self, split, ""))

    def made_from(self, split, root):
        return [path for pair in self._pairs(split) for path in pair if path.is_file()]

    def fingerprint(self, split, root):
        """Hash names, sizes and modification times of the files instead of their content."""
        folder = self._folder(split)
        stats = [(str(path.relative_to(folder)), *paths.stat(path)) for path in self.made_from(split, root)]
        return cache.key(stats)

    def records(self, split, root, bad):
        for picture, mask in self._pairs(split):
            try:
                if not mask.is_file():
                    raise ValueError(f"no such mask: {mask}")
                record = {"image": pictures.read(picture), "mask": mask_files.read_mask(mask)}
            except ValueError as error:
                bad.skip(str(picture), str(error))
                continue
            yield str(picture), record

    def _pairs(self, split: str) -> list[tuple[Path, Path]]:
        """Return (image, path of its mask) in the order of names. The mask may not exist."""
        folder = self._folder(split)
        found = sorted(p for p in (folder / "images").iterdir() if p.is_file() and not p.name.startswith("."))
        # JPEG compression would change labels, so every mask is a PNG file.
        return [(path, folder / "masks" / f"{path.stem}.png") for path in found]

    def _folder(self, split: str) -> Path:
        option, given = f"data.source.{split}", getattr(self, split)
        path = paths.expanded(option, given) if given else None
        for name in ("images", "masks"):
            if path is None or not (path / name).is_dir():
                raise ValueError(f"{option}: {given!r} holds no folder {name!r}; it must hold 'images' and 'masks'")
        return path
