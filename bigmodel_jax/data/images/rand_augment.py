"""RandAugment: a few augmentations drawn from a table, all with the same magnitude."""

import dataclasses
import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.data.images.augment import Augmentation
from bigmodel_jax.data.images.draws import Draws
from bigmodel_jax.data.images.pictures import from_pillow, to_pillow

Change = Callable[[Image.Image, float], Image.Image]


def _moved(picture: Image.Image, *back: float) -> Image.Image:
    """Apply an affine map: pixel (x, y) comes from (ax + by + c, dx + ey + f), or is black."""
    return picture.transform(picture.size, Image.Transform.AFFINE, back, resample=Image.Resampling.NEAREST)


def _slope(x: float) -> float:
    # The coordinates are computed as in torchvision, because their last bits decide which pixel is
    # taken.
    return math.tan(math.radians(math.degrees(math.atan(x))))


def _enhanced(kind: type) -> Change:
    return lambda picture, x: kind(picture).enhance(1 + x)


# name -> (the augmentation, its strongest amount, whether its sign is random). The amount at a
# magnitude m is the share m / (bins - 1) of the strongest. The amount of Translate is a share of
# the image's side.
CHANGES: dict[str, tuple[Change, float, bool]] = {
    "Identity": (lambda picture, x: picture, 0, False),
    "ShearX": (lambda picture, x: _moved(picture, 1, _slope(x), 0, 0, 1, 0), 0.3, True),
    "ShearY": (lambda picture, x: _moved(picture, 1, 0, 0, _slope(x), 1, 0), 0.3, True),
    "TranslateX": (lambda picture, x: _moved(picture, 1, 0, -int(x * picture.width), 0, 1, 0), 150 / 331, True),
    "TranslateY": (lambda picture, x: _moved(picture, 1, 0, 0, 0, 1, -int(x * picture.height)), 150 / 331, True),
    "Rotate": (lambda picture, x: picture.rotate(x, Image.Resampling.NEAREST), 30, True),
    "Brightness": (_enhanced(ImageEnhance.Brightness), 0.9, True),
    "Color": (_enhanced(ImageEnhance.Color), 0.9, True),
    "Contrast": (_enhanced(ImageEnhance.Contrast), 0.9, True),
    "Sharpness": (_enhanced(ImageEnhance.Sharpness), 0.9, True),
    "Posterize": (lambda picture, x: ImageOps.posterize(picture, 8 - round(x)), 4, False),
    "Solarize": (lambda picture, x: ImageOps.solarize(picture, 255 - x), 255, False),
    "AutoContrast": (lambda picture, x: ImageOps.autocontrast(picture), 0, False),
    "Equalize": (lambda picture, x: ImageOps.equalize(picture), 0, False),
}


@dataclasses.dataclass(frozen=True)
class RandAugment(Augmentation):
    """Applies `num` augmentations of the table, drawn with repetition (Cubuk et al.,
    arXiv:1909.13719).

    Table, magnitudes and nearest-neighbour interpolation are those of
    torchvision.transforms.RandAugment.
    """

    num: Count = 2
    "augmentations per image"
    magnitude: CountOrZero = 9
    "strength of all augmentations, 0 .. bins - 1"
    bins: Count = 31
    "number of magnitudes"

    def __post_init__(self):
        if self.magnitude >= self.bins:
            raise ValueError(
                f"data.augment: RandAugment(magnitude={self.magnitude}); it must be below bins = {self.bins}"
            )

    def __call__(self, image, noise):
        draws, picture, names = Draws(noise), to_pillow(image), list(CHANGES)
        for _ in range(self.num):
            name = names[draws.below(len(names))]
            picture = apply(picture, name, self.magnitude, self.bins, negative=draws.chance(0.5))
        return from_pillow(picture)


def apply(picture: Image.Image, name: str, magnitude: int, bins: int, *, negative: bool) -> Image.Image:
    """Apply one augmentation of the table. `negative` flips the sign of a signed magnitude."""
    change, strongest, signed = CHANGES[name]
    amount = strongest * magnitude / max(bins - 1, 1)
    return change(picture, -amount if signed and negative else amount)
