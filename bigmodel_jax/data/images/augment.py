"""Changes of training pictures, a list of which stands in a data config: each is a function of a picture and 64 random bits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

from bigmodel_jax.core import user_code
from bigmodel_jax.core.ranges import Count, NonNegative, Positive, Share, ShareAboveZero
from bigmodel_jax.core.user_code import FunctionName
from bigmodel_jax.data.images.draws import GOLDEN, MASK, Draws, mixed
from bigmodel_jax.data.images.pictures import Box, from_pillow, to_pillow

TRIES = 10  # of a random part that lies inside the picture


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Base of every change of a training picture."""

    def __call__(self, image: np.ndarray, noise: int) -> np.ndarray:
        """(H, W, 1 or 3) uint8 -> a new array of the same shape; equal bits give equal pixels."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__()")


def noise_of(noise: int, place: int) -> int:
    """The random bits of the change at this place of the list."""
    return mixed((int(noise) + (place + 1) * GOLDEN) & MASK)


def augmented(changes: Sequence[Augmentation], image: np.ndarray, noise: int, first: int = 0) -> np.ndarray:
    """The picture after the changes from `first` on. ValueError names the change that gives another shape or type."""
    shape = image.shape
    for place, change in enumerate(changes[first:], first):
        image = change(image, noise_of(noise, place))
        if getattr(image, "shape", None) != shape or image.dtype != np.uint8:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"data.augment.{place}: {type(change).__name__} gave {found}; uint8 {shape} is needed")
    return image


# ---------------------------------------------------------------- which part is seen


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """A part of random area and aspect ratio, scaled to the size of the batch's images (Szegedy et al. 2014, arXiv:1409.4842,
    section 6, with the numbers of torchvision's class of this name). As first of the list it is cut from the file."""

    area: tuple[ShareAboveZero, ShareAboveZero] = (0.08, 1.0)
    "least and greatest share of the picture's area"
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    "least and greatest width / height"

    def __post_init__(self):
        _check_rising(self, "area", "aspect")

    def box(self, width: int, height: int, noise: int) -> Box:
        """Where ten tries find no part inside the picture, the largest part in the middle of an allowed aspect ratio."""
        draws = Draws(noise)
        for _ in range(TRIES):
            across, down = _sides(draws, self.area, self.aspect, width, height)
            if 0 < across <= width and 0 < down <= height:
                return draws.below(width - across + 1), draws.below(height - down + 1), across, down
        least, most = self.aspect
        across, down = min(width, round(height * most)), min(height, round(width / least))
        return (width - across) // 2, (height - down) // 2, max(across, 1), max(down, 1)

    def __call__(self, image, noise):
        left, top, across, down = self.box(image.shape[1], image.shape[0], noise)
        picture, size = to_pillow(image), (image.shape[1], image.shape[0])
        box = (left, top, left + across, top + down)
        return from_pillow(picture.resize(size, Image.Resampling.BILINEAR, box=box))


@dataclasses.dataclass(frozen=True)
class Shift(Augmentation):
    """Moved by up to so many pixels each way, black coming in at the edge: a random part of the padded picture."""

    pixels: Count = 2

    def __call__(self, image, noise):
        draws, most = Draws(noise), self.pixels
        down, right = draws.below(2 * most + 1), draws.below(2 * most + 1)
        padded = np.pad(image, ((most, most), (most, most), (0, 0)))
        return padded[down : down + image.shape[0], right : right + image.shape[1]]


@dataclasses.dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrored, left and right or top and bottom exchanged."""

    share: Share = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __call__(self, image, noise):
        if not Draws(noise).chance(self.share):
            return image
        return image[:, ::-1] if self.axis == "horizontal" else image[::-1]


@dataclasses.dataclass(frozen=True)
class Rotate(Augmentation):
    """Turned about the middle by up to so many degrees each way, black coming in."""

    degrees: NonNegative = 15.0

    def __call__(self, image, noise):
        angle = Draws(noise).uniform(-self.degrees, self.degrees)
        return from_pillow(to_pillow(image).rotate(angle, Image.Resampling.BILINEAR))


@dataclasses.dataclass(frozen=True)
class Scale(Augmentation):
    """Enlarged about the middle by a factor between these two, black coming in where it is below 1."""

    least: Positive = 0.8
    most: Positive = 1.25

    def __post_init__(self):
        if self.least > self.most:
            raise ValueError(f"data.augment: Scale(least={self.least}, most={self.most}): least must not be above most")

    def __call__(self, image, noise):
        draws = Draws(noise)
        step = 1 / math.exp(draws.uniform(math.log(self.least), math.log(self.most)))
        height, width = image.shape[:2]
        back = (step, 0, width / 2 * (1 - step), 0, step, height / 2 * (1 - step))
        moved = to_pillow(image).transform(
            (width, height), Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR
        )
        return from_pillow(moved)


# ---------------------------------------------------------------- how it looks


@dataclasses.dataclass(frozen=True)
class Colour(Augmentation):
    """Brightness, contrast and saturation times a factor of 1 +- their number, the hue turned by up to `hue` of the circle, in
    random order, as torchvision's ColorJitter does."""

    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Share = 0.0

    def __post_init__(self):
        if self.hue > 0.5:
            raise ValueError(f"data.augment: Colour(hue={self.hue}): half the circle, 0.5, is the most")

    def __call__(self, image, noise):
        draws, picture = Draws(noise), to_pillow(image)
        changes = [
            (_enhanced(ImageEnhance.Brightness), 1, self.brightness),
            (_enhanced(ImageEnhance.Contrast), 1, self.contrast),
            (_enhanced(ImageEnhance.Color), 1, self.saturation),
            (turned_hue, 0, self.hue),
        ]
        while changes:
            change, middle, most = changes.pop(draws.below(len(changes)))
            amount = draws.uniform(middle - most, middle + most)
            picture = change(picture, amount) if most else picture
        return from_pillow(picture)


@dataclasses.dataclass(frozen=True)
class Erase(Augmentation):
    """In this share of all pictures a rectangle of random place, area and aspect ratio is overwritten (Zhong et al. 2017,
    arXiv:1708.04896): by random pixels, the best of the paper, or by black."""

    share: Share = 0.25
    area: tuple[ShareAboveZero, ShareAboveZero] = (0.02, 1 / 3)
    aspect: tuple[Positive, Positive] = (0.3, 3.3)
    fill: Literal["random", "black"] = "random"

    def __post_init__(self):
        _check_rising(self, "area", "aspect")

    def __call__(self, image, noise):
        draws = Draws(noise)
        if not draws.chance(self.share):
            return image
        height, width, channels = image.shape
        for _ in range(TRIES):
            across, down = _sides(draws, self.area, self.aspect, width, height)
            if 0 < across <= width and 0 < down <= height:
                left, top = draws.below(width - across + 1), draws.below(height - down + 1)
                image = image.copy()
                fill = draws.octets((down, across, channels)) if self.fill == "random" else 0
                image[top : top + down, left : left + across] = fill
                break
        return image


@dataclasses.dataclass(frozen=True)
class Own(Augmentation):
    """A function of the config file, or of a module, from a picture (H, W, C) uint8 and a whole number of 64 random bits to a
    picture of the same shape. It is named as the function of `Arrays` is."""

    function: FunctionName = ""

    def __post_init__(self):
        object.__setattr__(self, "function", user_code.name_of("data.augment", self.function))

    def __call__(self, image, noise):
        return user_code.call("data.augment", self.function, image, noise)


def _check_rising(change: Augmentation, *names: str) -> None:
    for name in names:
        least, most = getattr(change, name)
        if least > most:
            raise ValueError(
                f"data.augment: {type(change).__name__}({name}=({least:g}, {most:g})): the first must not be above the second"
            )


def _sides(draws: Draws, area: tuple, aspect: tuple, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels of a part: area uniform, the logarithm of the aspect ratio uniform."""
    pixels = width * height * draws.uniform(*area)
    ratio = math.exp(draws.uniform(math.log(aspect[0]), math.log(aspect[1])))
    return round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))


def _enhanced(kind: type):
    return lambda picture, factor: kind(picture).enhance(factor)


def turned_hue(picture: Image.Image, share: float) -> Image.Image:
    """The hue turned by a share of the circle, -0.5 .. 0.5, in Pillow's 256 steps; a grey picture stays."""
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(share * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
