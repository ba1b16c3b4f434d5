"""Changes of training pictures: each a function of picture and bits, within its bounds, and what is
refused."""

import dataclasses

import numpy as np
import pytest

from bigmodel_jax.core import ranges
from bigmodel_jax.data.images.augment import (
    Augmentation,
    Colour,
    Erase,
    Flip,
    Own,
    RandomResizedCrop,
    Rotate,
    Scale,
    Shift,
    augmented,
    turned_hue,
)
from bigmodel_jax.data.images.pictures import from_pillow, to_pillow
from bigmodel_jax.data.images.rand_augment import RandAugment

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
EVERY = [
    *(RandomResizedCrop(), Shift(), Flip(), Rotate(), Scale(), Colour(hue=0.2), Erase(share=1.0)),
    RandAugment(),
]


@pytest.mark.parametrize("change", EVERY, ids=lambda change: type(change).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_bits_give_equal_pixels_and_others_others(change, channels):
    image = IMAGE[..., :channels]
    before, seen = image.copy(), set()
    for noise in range(12):
        made = change(image, noise)
        assert (made.shape, made.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(made, change(image, noise))
        seen.add(made.tobytes())
    assert len(seen) > 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "change",
    [
        RandomResizedCrop(area=(1, 1), aspect=(1.2, 1.2)),
        Flip(share=0),
        Rotate(degrees=0),
        Scale(1, 1),
        Colour(0, 0, 0, 0),
        Erase(share=0),
    ],
    ids=lambda change: type(change).__name__,
)
def test_a_change_of_nothing_changes_nothing(change):
    np.testing.assert_array_equal(change(IMAGE, 3), IMAGE)


def test_a_part_lies_inside_with_the_areas_and_aspect_ratios_asked_for():
    crop = RandomResizedCrop(area=(0.1, 0.5))
    boxes = np.array([crop.box(400, 300, noise) for noise in range(400)], float)
    left, top, width, height = boxes.T
    assert min(left.min(), top.min()) >= 0
    assert (left + width).max() <= 400
    assert (top + height).max() <= 300
    area, aspect = width * height / 120_000, width / height
    assert 0.097 < area.min() < 0.13
    assert 0.45 < area.max() < 0.505
    assert 0.74 < aspect.min() < 0.8
    assert 1.26 < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.03
    assert RandomResizedCrop(area=(1, 1)).box(400, 100, 0) == (133, 0, 133, 100), "no part fits: the middle, 4 to 3"


def test_flips_mirror_half_of_all():
    made = [Flip()(IMAGE, noise) for noise in range(400)]
    mirrored = sum(np.array_equal(one, IMAGE[:, ::-1]) for one in made)
    assert mirrored + sum(np.array_equal(one, IMAGE) for one in made) == 400
    assert 160 < mirrored < 240
    np.testing.assert_array_equal(Flip(1.0, "vertical")(IMAGE, 0), IMAGE[::-1])


def test_shift_brings_in_black_by_whole_pixels():
    dot = np.zeros((7, 7, 1), np.uint8)
    dot[3, 3] = 1
    places = {tuple(np.argwhere(Shift(2)(dot, noise)[..., 0])[0] - 3) for noise in range(300)}
    assert places == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_rotation_and_scale_move_about_the_middle():
    bar = np.zeros((21, 21, 1), np.uint8)
    bar[10, 4:17] = 255
    turned = [Rotate(90.0)(bar, noise) for noise in range(20)]
    assert all(one[10, 10] > 200 for one in turned)
    assert max(one[:3].max() for one in turned) == 0, "nothing leaves the circle of its ends"
    square = np.full((20, 20, 1), 255, np.uint8)
    small = [Scale(0.5, 0.5)(square, noise) for noise in range(2)]
    assert np.count_nonzero(small[0] > 128) == 100
    assert small[0][5:15, 5:15].min() == 255


def test_hue_turns_red_to_green_and_to_blue():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    green, blue = (from_pillow(turned_hue(to_pillow(red), share))[0, 0].tolist() for share in (1 / 3, -1 / 3))
    np.testing.assert_allclose([green, blue], [[0, 255, 0], [0, 0, 255]], atol=6)


def test_colour_keeps_its_factors():
    grey = np.full((4, 4, 3), 100, np.uint8)
    levels = [int(Colour(0.5, 0, 0)(grey, noise)[0, 0, 0]) for noise in range(300)]
    assert 50 <= min(levels) < 55
    assert 145 < max(levels) <= 150


def test_erasing_takes_one_rectangle_of_the_area_asked_for():
    white = np.full((40, 40, 3), 255, np.uint8)
    for noise in range(50):
        black = (Erase(1.0, area=(0.1, 0.2), fill="black")(white, noise) == 0).all(axis=-1)
        rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
        assert black.sum() == len(rows) * len(columns)
        assert 0.08 < black.mean() < 0.22
    erased = [np.array_equal(Erase(0.25)(white, noise), white) for noise in range(400)]
    assert 260 < sum(erased) < 340


def inverted(image, noise):
    return 255 - image


def halved(image, noise):
    return image[::2]


def broken(image, noise):
    raise KeyError("no such thing")


@dataclasses.dataclass(frozen=True)
class Darker(Augmentation):
    by: int = 2

    def __call__(self, image, noise):
        return image // self.by


def test_the_users_own_functions_and_classes_stand_in_the_list():
    made = augmented((Own(inverted), Darker(5)), IMAGE, 3)
    np.testing.assert_array_equal(made, (255 - IMAGE) // 5)
    with pytest.raises(ValueError, match=r"data\.augment\.1: Own gave uint8 \(10, 24, 3\); uint8 \(20, 24, 3\) is"):
        augmented((Flip(), Own(halved)), IMAGE, 3)
    with pytest.raises(ValueError, match=r"data\.augment: .*:broken raised KeyError: 'no such thing' \(line"):
        augmented((Own(broken),), IMAGE, 3)


def test_places_of_the_list_draw_apart():
    once, twice = (augmented((Rotate(),) * count, IMAGE, 9) for count in (1, 2))
    assert not np.array_equal(twice, Rotate()(once, 9))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RandomResizedCrop(area=(0.5, 0.1)), r"RandomResizedCrop\(area=\(0.5, 0.1\)\): the first"),
        (lambda: Erase(aspect=(3.0, 1.0)), r"Erase\(aspect=\(3, 1\)\): the first must not be above the second"),
        (lambda: Scale(2.0, 1.0), r"Scale\(least=2.0, most=1.0\): least must not be above most"),
        (lambda: Colour(hue=0.7), r"Colour\(hue=0.7\): it must be at most 0.5, half the circle"),
        (lambda: ranges.check(Flip(share=1.5)), "share = 1.5; it must be 0 or more and at most 1"),
        (lambda: ranges.check(RandomResizedCrop(area=(0.0, 1.0))), "area = 0.0; it must be above 0"),
    ],
)
def test_numbers_out_of_range_are_one_line(make, says):
    with pytest.raises(ValueError, match=says):
        make()
