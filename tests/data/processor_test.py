"""An export's preprocessor_config.json: done by Pillow step by step, it gives what evaluation
saw."""

import dataclasses
import json

import numpy as np
from PIL import Image

from bigmodel_jax.data import Arrays, DataConfig, ImageData

PHOTOS = [
    np.asarray(Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)).resize(size, 3))
    for i, size in enumerate([(90, 60), (40, 80), (64, 64)])
]


def make_arrays():
    return {split: {"image": PHOTOS, "label": [0, 1, 0]} for split in ("train", "validation")}


def done(about, photo):
    picture = Image.fromarray(photo)
    short = about["size"]["shortest_edge"]
    scale = short / min(picture.size)
    picture = picture.resize([round(scale * side) for side in picture.size], about["resample"])
    width, height = about["crop_size"]["width"], about["crop_size"]["height"]
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    image = np.asarray(picture.crop((left, top, left + width, top + height))) * about["rescale_factor"]
    if about["do_normalize"]:
        image = (image - about["image_mean"]) / about["image_std"]
    return image


def test_what_the_file_says_gives_what_evaluation_saw(tmp_path):
    data = ImageData(
        source=Arrays(f"{__name__}:make_arrays"), num_classes=2, image_size=28, cache_dir=str(tmp_path / "c")
    )
    for normalise, bound in (("none", 0.005), ("train", 0.02)):
        data = dataclasses.replace(data, normalise=normalise)
        data.save_artifacts(tmp_path)
        about = json.loads(json.dumps(data.processor(tmp_path)))
        seen = data.open("validation").batch(np.arange(3), None)["image"]
        for photo, image in zip(PHOTOS, seen, strict=True):
            assert np.abs(done(about, photo) - image).mean() < bound
    assert np.std(seen) > 0.8


def test_other_data_has_none(tmp_path):
    assert DataConfig().processor(tmp_path) == ImageData().processor(tmp_path) == {}
