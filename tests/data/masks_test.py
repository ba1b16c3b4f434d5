"""Pictures with masks: what a record may be, one size for all, the same moves for both, folders,
scenes of digits."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.data import DigitScenes, MaskData, MaskFolders, Source, cache
from bigmodel_jax.data.images import mask_files

IMAGE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
MASK = np.tile(np.arange(8) // 4, (6, 1))


@dataclasses.dataclass(frozen=True)
class Given(Source):
    """Records that a test writes down."""

    given: tuple[Any, ...] = ()

    def fingerprint(self, split, root):
        return cache.key([str({name: np.asarray(x).tolist() for name, x in r.items()}) for r in self.given])

    def records(self, split, root, bad):
        yield from ((f"record {n}", record) for n, record in enumerate(self.given))


def data(tmp_path, *records, **options):
    return MaskData(source=Given(records), num_classes=3, cache_dir=str(tmp_path), **options)


def changed(mask, value):
    out = np.array(mask)
    out[2, 5] = value
    return out


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": IMAGE}, r"record 1: no field 'mask'; its fields: image"),
        ({"image": IMAGE, "mask": MASK[:, :7]}, r"record 1: the mask has 7 x 6 pixels, and its picture 8 x 6"),
        (
            {"image": IMAGE, "mask": changed(MASK, 9)},
            r"record 1: label 9 at row 2, column 5 of the mask is neither in 0 \.\. 2 \(data\.num_classes\) nor 255",
        ),
        ({"image": IMAGE, "mask": changed(MASK, -1)}, r"record 1: label -1 at row 2, column 5"),
        ({"image": IMAGE, "mask": MASK / 2}, r"record 1: no mask of whole numbers \(height, width\), but float64"),
        ({"image": IMAGE / 255, "mask": MASK}, r"record 1: its picture is float64"),
        ({"image": IMAGE[:4], "mask": MASK[:4]}, r"record 1: shape \(4, 8, 3\), but the first has \(6, 8, 3\)"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(record, message, tmp_path):
    good = {"image": IMAGE, "mask": MASK}
    with pytest.raises(ValueError, match=message):
        data(tmp_path, good, record).open("train")
    rows = data(tmp_path, good, record, max_bad_records=1).open("train")
    assert len(rows) == 1
    assert rows.counts()["skipped records"] == 1


def test_a_batch_holds_what_the_row_declares(tmp_path):
    cfg = data(tmp_path, {"image": IMAGE, "mask": changed(MASK, 255)})
    batch = cfg.open("train").batch(np.zeros(2, int), None)
    assert set(batch) == set(cfg.row())
    np.testing.assert_array_equal(batch["image"][0], IMAGE / np.float32(255))
    np.testing.assert_array_equal(batch["mask"][1], changed(MASK, 255))
    assert batch["mask"].dtype == np.int32
    assert cfg.requirements() == {"num_classes": 3, "image_shape": (6, 8, 3)}


@pytest.mark.parametrize("change", [{"max_shift": 2}, {"flip": True}], ids=str)
def test_pictures_and_masks_move_together(change, tmp_path):
    """The picture's red channel repeats the mask, so that each pixel shows whether both came from
    one place."""
    labels = np.random.default_rng(0).integers(0, 3, (6, 8))
    image = np.stack([labels + 1, *np.zeros((2, 6, 8), int)], axis=-1).astype(np.uint8)
    cfg = data(tmp_path, {"image": image, "mask": labels}, **change)
    noise = np.random.default_rng(1).integers(0, 2**64, 16, np.uint64)
    batch = cfg.open("train").batch(np.zeros(16, int), noise)
    red = np.round(batch["image"][..., 0] * 255).astype(int) - 1
    np.testing.assert_array_equal(np.where(red < 0, 255, red), batch["mask"])
    assert len({mask.tobytes() for mask in batch["mask"]}) > 1


def test_a_wide_picture_at_a_square_size():
    """`crop` keeps the middle. `pad` keeps all of it above the label of no class. `resize` squeezes
    all of it."""
    image = np.stack([MASK * 200] * 3, axis=-1).astype(np.uint8)
    cases = {
        "crop": np.tile([0, 0, 1, 1], (4, 1)),
        "pad": np.concatenate([np.tile([0, 0, 1, 1], (3, 1)), np.full((1, 4), 255)]),
        "resize": np.tile([0, 0, 1, 1], (4, 1)),
    }
    for fit, expected in cases.items():
        picture, mask = mask_files.fitted(image, MASK.astype(np.uint8), (4, 4), fit, 255)
        np.testing.assert_array_equal(mask, expected, err_msg=fit)
        assert picture.shape == (4, 4, 3)
        sure = [0, 3]  # columns that bilinear scaling does not blend
        shown = np.where(mask == 255, 0, mask * 200)
        np.testing.assert_array_equal(picture[:3, sure, 0], shown[:3, sure], err_msg=fit)


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
@pytest.mark.parametrize("shape", [(5, 23), (23, 5), (1, 40), (31, 31)], ids=str)
def test_any_aspect_ratio_gives_the_size(fit, shape):
    image, mask = np.full((*shape, 1), 7, np.uint8), np.ones(shape, np.uint8)
    picture, found = mask_files.fitted(image, mask, (12, 9), fit, 255)
    assert picture.shape == (12, 9, 1)
    assert found.shape == (12, 9)
    assert set(np.unique(found)) <= ({1, 255} if fit == "pad" else {1})
    assert (picture[found == 1] == 7).all()
    assert not picture[found == 255].any()


def folder(tmp_path, masks):
    for split in ("train", "validation"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for name, mask in masks.items():
            Image.fromarray(IMAGE).save(tmp_path / split / "images" / f"{name}.jpg", quality=95)
            if mask is not None:
                mask.save(tmp_path / split / "masks" / f"{name}.png")
    return MaskFolders(str(tmp_path / "train"), str(tmp_path / "validation"), classes=("a", "b", "c"))


def test_folders_are_paired_by_name_and_palettes_give_their_entries(tmp_path):
    palette = Image.fromarray(MASK.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
    source = folder(tmp_path, {"first": Image.fromarray(MASK.astype(np.uint8)), "second": palette})
    rows = MaskData(source=source, num_classes=3, cache_dir=str(tmp_path / "cache")).open("validation")
    batch = rows.batch(np.arange(2), None)
    np.testing.assert_array_equal(batch["mask"], [MASK, MASK])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, r"images/only\.jpg: no such mask: .*masks/only\.png"),
        (Image.fromarray(IMAGE), r"only\.png is not a readable mask \(its pixels are RGB; a mask is grey, or has"),
        (Image.fromarray(np.full((6, 8), 300, np.uint16)), r"it holds 300; labels go up to 255"),
    ],
    ids=["missing", "colours", "too large"],
)
def test_a_mask_file_that_cannot_be_used_is_named(mask, message, tmp_path):
    source = folder(tmp_path, {"only": mask})
    with pytest.raises(ValueError, match=message):
        MaskData(source=source, num_classes=3, cache_dir=str(tmp_path / "cache")).open("train")


def test_a_folder_without_masks_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    source = MaskFolders(str(tmp_path), str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.source\.train: '.*' holds no folder 'masks'"):
        MaskData(source=source, cache_dir=str(tmp_path / "cache")).open("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (4,)}, r"data\.image_size = \(4,\); it must be \(height, width\), or \(\)"),
        ({"ignore_label": 256}, r"data\.ignore_label = 256; it must be at most 255"),
        ({"num_classes": 256}, r"data\.num_classes = 256; it must be at most 255"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskData(**options)


@pytest.mark.slow
def test_scenes_are_functions_of_the_seed(tmp_path):
    def scenes(**options):
        return MaskData(source=DigitScenes(train=12, validation=12, **options), cache_dir=str(tmp_path)).open("train")

    first, again, other = scenes(), scenes(), scenes(seed=1)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert (first.images != other.images).any()
    assert first.images.shape == (12, 48, 48, 1)
    # Ink is bright and the ground's noise dark; clutter is bright ground.
    ink = first.masks > 0
    assert first.images[ink].min() >= 64
    assert 0.02 < ink.mean() < 0.3
    plain = scenes(clutter=0)
    assert plain.images[plain.masks == 0].max() < 64
