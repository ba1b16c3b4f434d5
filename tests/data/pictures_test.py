"""Picture files to arrays: depth, orientation, transparency, and files that are none."""

import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from bigmodel_jax.data.images import pictures

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def saved(tmp_path, array, name="x.png", **options):
    Image.fromarray(array).save(tmp_path / name, **options)
    return pictures.read(tmp_path / name)


def test_eight_bits_are_read_as_they_are(tmp_path):
    np.testing.assert_array_equal(saved(tmp_path, RAMP), np.stack([RAMP] * 3, axis=2))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, name):
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(saved(tmp_path, deep, name)[..., 0], RAMP)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="8 and 16 bits a channel are read"):
        saved(tmp_path, RAMP.astype(dtype), "x.tif")


def test_a_picture_is_turned_as_its_exif_data_says(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned by a quarter: rows of the file are columns of the scene
    turned = saved(tmp_path, RAMP, exif=exif)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    turned = saved(tmp_path, RAMP, exif=exif)
    np.testing.assert_array_equal(turned[..., 0], ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))


def test_a_tag_of_a_wrong_type_costs_no_picture(tmp_path):
    # Two entries of a TIFF directory: the orientation 6, and a resolution that is a text.
    entries = struct.pack("<HHI4s", 274, 3, 1, b"\6\0\0\0") + struct.pack("<HHI4s", 282, 2, 4, b"72 \0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    turned = saved(tmp_path, RAMP, exif=exif)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(tmp_path / "x.png"))
    np.testing.assert_array_equal(turned[..., 0], np.rot90(RAMP, -1))


def test_a_picture_of_sixteen_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    turned = saved(tmp_path, RAMP.astype(np.uint16) * 257, exif=exif)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(RAMP, -1))


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    found = saved(tmp_path, rgba)
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[1, 1].tolist() == [255, 255, 255]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="is not a file"):
        pictures.read(tmp_path / "x.png")


def test_postscript_starts_no_program(tmp_path):
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match="not a readable picture"):
        pictures.read(tmp_path / "x.eps")
