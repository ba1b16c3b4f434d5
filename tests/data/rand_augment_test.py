"""RandAugment's changes against torchvision's, bit for bit, and what is drawn of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.data.images import rand_augment
from bigmodel_jax.data.images.rand_augment import RandAugment

REFERENCE = json.loads((Path(__file__).parent / "fixtures" / "rand_augment.json").read_text())["digests"]


def picture() -> Image.Image:
    y, x = np.mgrid[:33, :45]
    noise = np.random.Generator(np.random.PCG64(7)).integers(0, 60, (33, 45, 3))
    values = 20 + np.stack([3 * y, 4 * x, 2 * (x + y)], axis=-1) + noise
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def test_every_change_is_torchvisions_at_every_magnitude():
    assert {case.split()[0] for case in REFERENCE} == set(rand_augment.CHANGES)
    wrong = []
    for case, digest in REFERENCE.items():
        name, magnitude, sign = case.split()
        made = rand_augment.apply(picture(), name, int(magnitude), 31, negative=sign == "-1")
        if hashlib.sha256(np.asarray(made).tobytes()).hexdigest()[:16] != digest:
            wrong.append(case)
    assert wrong == []
    assert len(set(REFERENCE.values())) > 80, "the changes differ from each other"


def test_each_change_is_drawn_and_its_sign(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        rand_augment,
        "apply",
        lambda image, name, magnitude, bins, negative: drawn.append((name, magnitude, bins, negative)) or image,
    )
    for noise in range(300):
        RandAugment(num=3, magnitude=7)(np.zeros((4, 4, 3), np.uint8), noise)
    assert len(drawn) == 900
    assert {(name, negative) for name, _, _, negative in drawn} == {
        (name, negative) for name in rand_augment.CHANGES for negative in (True, False)
    }
    assert {(magnitude, bins) for _, magnitude, bins, _ in drawn} == {(7, 31)}


def test_a_grey_picture_stays_grey():
    image = np.asarray(picture())[..., :1]
    for noise in range(60):
        assert RandAugment(magnitude=20)(image, noise).shape == image.shape


def test_a_magnitude_beyond_the_bins_is_one_line():
    with pytest.raises(ValueError, match=r"RandAugment\(magnitude=31\); it must be below bins = 31"):
        RandAugment(magnitude=31)
