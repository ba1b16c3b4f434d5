"""Augmentations of training images: each maps an image and 64 random bits to an image."""

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

TRIES = 10  # attempts to draw a rectangle that lies inside the image


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The base class of every augmentation."""

    def __call__(self, image: np.ndarray, noise: int) -> np.ndarray:
        """Map (H, W, 1 or 3) uint8 to a new array of that shape. Equal bits give equal pixels."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__()")


def noise_of(noise: int, place: int) -> int:
    """Return the random bits of the augmentation at this place of the list."""
    return mixed((int(noise) + (place + 1) * GOLDEN) & MASK)


def augmented(changes: Sequence[Augmentation], image: np.ndarray, noise: int, first: int = 0) -> np.ndarray:
    """Apply the augmentations from number `first` on.

    Raises ValueError with the name of an augmentation that changes the shape or the dtype.
    """
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
    """Cuts out a rectangle of random area and aspect ratio, and resizes it to the image's size.

    The source is Szegedy et al. 2014 (arXiv:1409.4842, section 6). The default ranges are those of
    torchvision's class of this name. As the first of the list it is cut from the full-size file.
    """

    area: tuple[ShareAboveZero, ShareAboveZero] = (0.08, 1.0)
    "range of the rectangle's share of the image's area"
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    "range of width / height"

    def __post_init__(self):
        _check_rising(self, "area", "aspect")

    def box(self, width: int, height: int, noise: int) -> Box:
        """Return the random rectangle.

        Where ten attempts find none inside the image, it is the largest centred rectangle of an
        allowed aspect ratio.
        """
        draws = Draws(noise)
        for _ in range(TRIES):
            across, down = _sides(draws, self.area, self.aspect, width, height)
            if 0 < across <= width and 0 < down <= height:
                return draws.below(width - across + 1), draws.below(height - down + 1), across, down
        # No attempt fitted: take the largest centred rectangle of an allowed aspect ratio.
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
    """Shifts the image by up to `pixels` each way. The uncovered edge becomes black."""

    pixels: Count = 2
    "the largest shift, in pixels"

    def __call__(self, image, noise):
        draws, most = Draws(noise), self.pixels
        down, right = draws.below(2 * most + 1), draws.below(2 * most + 1)
        padded = np.pad(image, ((most, most), (most, most), (0, 0)))
        return padded[down : down + image.shape[0], right : right + image.shape[1]]


@dataclasses.dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors the image left-right (horizontal) or top-bottom (vertical)."""

    share: Share = 0.5
    "share of the images that are mirrored"
    axis: Literal["horizontal", "vertical"] = "horizontal"
    "horizontal: left and right are exchanged; vertical: top and bottom"

    def __call__(self, image, noise):
        if not Draws(noise).chance(self.share):
            return image
        return image[:, ::-1] if self.axis == "horizontal" else image[::-1]


@dataclasses.dataclass(frozen=True)
class Rotate(Augmentation):
    """Rotates the image about its centre by up to `degrees` each way, on black."""

    degrees: NonNegative = 15.0
    "the largest angle"

    def __call__(self, image, noise):
        angle = Draws(noise).uniform(-self.degrees, self.degrees)
        return from_pillow(to_pillow(image).rotate(angle, Image.Resampling.BILINEAR))


@dataclasses.dataclass(frozen=True)
class Scale(Augmentation):
    """Scales the image about its centre by a random factor. Below 1 the border becomes black."""

    least: Positive = 0.8
    "the smallest factor"
    most: Positive = 1.25
    "the largest factor"

    def __post_init__(self):
        if self.least > self.most:
            raise ValueError(f"data.augment: Scale(least={self.least}, most={self.most}): least must not be above most")

    def __call__(self, image, noise):
        draws = Draws(noise)
        # The logarithm is uniform, so enlarging by a factor is as likely as shrinking by it.
        step = 1 / math.exp(draws.uniform(math.log(self.least), math.log(self.most)))
        height, width = image.shape[:2]
        # Pillow's transform maps output coordinates to input coordinates, hence the inverse factor.
        back = (step, 0, width / 2 * (1 - step), 0, step, height / 2 * (1 - step))
        moved = to_pillow(image).transform(
            (width, height), Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR
        )
        return from_pillow(moved)


# ---------------------------------------------------------------- how it looks


@dataclasses.dataclass(frozen=True)
class Colour(Augmentation):
    """Changes brightness, contrast, saturation and hue in random order, as torchvision's
    ColorJitter does.

    Brightness, contrast and saturation are multiplied by a factor between 1 - x and 1 + x, where x
    is the field. The hue is turned by up to `hue` of the colour circle in both directions.
    """

    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Share = 0.0

    def __post_init__(self):
        if self.hue > 0.5:
            raise ValueError(f"data.augment: Colour(hue={self.hue}): it must be at most 0.5, half the circle")

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
            # The amount is drawn even where it has no effect, so a 0 changes no other draw.
            amount = draws.uniform(middle - most, middle + most)
            picture = change(picture, amount) if most else picture
        return from_pillow(picture)


@dataclasses.dataclass(frozen=True)
class Erase(Augmentation):
    """Overwrites a random rectangle in this share of the images (Zhong et al. 2017,
    arXiv:1708.04896).

    The rectangle is filled with random pixels, which is the best variant of the paper, or with
    black.
    """

    share: Share = 0.25
    "share of the images that get a rectangle"
    area: tuple[ShareAboveZero, ShareAboveZero] = (0.02, 1 / 3)
    "range of the rectangle's share of the image's area"
    aspect: tuple[Positive, Positive] = (0.3, 3.3)
    "range of width / height"
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
    """Applies a user's function (image (H, W, C) uint8, 64 random bits as an int) -> image.

    The result must have the same shape. The function stands in the config file or in a module, and
    is named like the function of `Arrays`.
    """

    function: FunctionName = ""

    def __post_init__(self):
        # config.json can hold only a function's name; a frozen dataclass forbids plain assignment.
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
    """Draw the (width, height) of a rectangle in pixels.

    The area is uniform, and so is the logarithm of the aspect ratio.
    """
    pixels = width * height * draws.uniform(*area)
    ratio = math.exp(draws.uniform(math.log(aspect[0]), math.log(aspect[1])))
    return round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))


def _enhanced(kind: type):
    return lambda picture, factor: kind(picture).enhance(factor)


def turned_hue(picture: Image.Image, share: float) -> Image.Image:
    """Turn the hue by a share of the colour circle, -0.5 .. 0.5, in Pillow's 256 steps.

    A grey image is returned unchanged.
    """
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    # uint8 arithmetic wraps around, as the colour circle does.
    # A negative float has no defined uint8 value, but a negative int32 wraps around.
    turned = np.asarray(hue) + np.int32(share * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
