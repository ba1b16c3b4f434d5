"""Pictures that stay files: any sizes, from folders, tars and arrays alike; what cannot be read;
what a batch decodes."""

import io
import itertools
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.core import paths
from bigmodel_jax.data import Arrays, ImageData, ImageFolders, TarFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images import encoded, pictures
from bigmodel_jax.data.images.augment import Colour, Flip, RandomResizedCrop, Shift
from bigmodel_jax.data.images.mix import CutMix
from bigmodel_jax.data.loader import Sampler

RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog", "owl")
SIZES = [(40, 60), (32, 20), (24, 24), (88, 28)]
PICTURES = [RNG.integers(0, 256, (h // 4, w // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1) for w, h in SIZES]
AUGMENT = (RandomResizedCrop(), Flip(), Colour(), Shift(1))


def file_of(image, kind="PNG", **more):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **more)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "validation"):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for number, image in enumerate(PICTURES):
                (tmp_path / split / name / f"{number}.png").write_bytes(file_of(image))
    return tmp_path


def data(folder, source=None, **more):
    source = source or ImageFolders(str(folder / "train"), str(folder / "validation"))
    return ImageData(source=source, num_classes=3, image_size=16, cache_dir=str(folder / "cache"), **more)


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def make_arrays():
    columns = {"image": [x for _ in CLASSES for x in PICTURES], "label": np.repeat(range(3), 4)}
    return {"train": columns, "validation": columns}


def test_a_folder_a_tar_and_arrays_give_the_same_batches(photos):
    members = {}
    for row, (label, image) in enumerate((label, image) for label in range(3) for image in PICTURES):
        members |= {f"{row:03}.png": file_of(image), f"{row:03}.cls": str(label).encode()}
    tar = tar_of(photos / "all.tar", members)
    noise = np.arange(12, dtype=np.uint64)
    found = []
    for source in (None, TarFiles(tar, tar), Arrays(f"{__name__}:make_arrays")):
        rows = data(photos, source, augment=AUGMENT).open("train")
        found.append((rows.batch(np.arange(12), None), rows.batch(np.arange(12), noise)))
        assert rows.images.by_path == (source is None)
        assert rows.counts()["shorter side, smallest"] == 20
        assert rows.counts()["longer side, largest"] == 88
    for plain, changed in found:
        assert plain["image"].shape == (12, 16, 16, 3)
        np.testing.assert_array_equal(plain["image"], found[0][0]["image"])
        np.testing.assert_array_equal(changed["image"], found[0][1]["image"])
        assert plain["label"].tolist() == np.repeat(range(3), 4).tolist()
        assert not np.array_equal(plain["image"], changed["image"])


def test_evaluation_sees_the_middle_scaled_once(photos):
    rows = data(photos, eval_crop=0.5).open("validation")
    got = rows.batch(np.arange(4), None)["image"]
    for image, (width, height), ours in zip(PICTURES, SIZES, got, strict=True):
        side = min(width, height) / 2
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        want = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR, box=box)
        np.testing.assert_array_equal(ours, np.asarray(want, np.float32) / 255)


def test_a_batch_reads_its_own_files_and_no_others(photos, monkeypatch):
    rows = data(photos).open("train")
    assert (photos / "cache").exists()
    stored = sum(path.stat().st_size for path in (photos / "cache").rglob("data.bin"))
    assert stored < 12 * (len(str(photos)) + 20), "of a folder, paths alone are kept"
    read, view = [], pictures.view
    monkeypatch.setattr(
        pictures, "view", lambda content, name, *rest, **more: read.append(name) or view(content, name, *rest, **more)
    )
    rows.batch(np.array([7, 2]), None)
    assert sorted(name[-9:] for name in read) == ["cat/2.png", "dog/3.png"]


@pytest.mark.parametrize("cuts", [[0, 6], [0, 3, 6], [0, 1, 2, 5, 6]])
def test_batches_are_the_same_on_any_number_of_processes(cuts, photos):
    cfg = data(photos, augment=AUGMENT, mix=(CutMix(),), normalise="train")
    whole = Sampler(cfg.open("train"), 6, 3).local(4)
    parts = [Sampler(cfg.open("train"), 6, 3).local(4, *cut) for cut in itertools.pairwise(cuts)]
    for name, x in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), x)


def test_mean_and_spread_are_of_what_evaluation_sees_of_training(photos):
    for name in CLASSES:
        (photos / "validation" / name / "0.png").write_bytes(file_of(np.full((50, 50, 3), 255, np.uint8)))
    seen = data(photos).open("train").batch(np.arange(12), None)["image"].astype(np.float64)
    found = data(photos, normalise="train").open("train").channels
    np.testing.assert_allclose(found.mean, seen.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.spread, seen.std((0, 1, 2)), rtol=1e-6)


# ---------------------------------------------------------------- kinds of pictures


def test_a_large_jpeg_file_is_decoded_at_a_part_of_its_size(monkeypatch):
    smooth = np.asarray(Image.fromarray(PICTURES[0]).resize((800, 640), Image.Resampling.BICUBIC))
    content, sizes, resize = file_of(smooth, "JPEG", quality=95), [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda im, *a, **k: sizes.append(im.size) or resize(im, *a, **k))
    box = lambda width, height: (100, 40, 400, 500)  # noqa: E731
    quick, fine = (pictures.view(content, "it", 100, box, gap=gap).astype(int) for gap in (1, 8))
    assert sizes == [(200, 160), (800, 640)]
    assert np.abs(quick - fine).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_cut_upright(orientation):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    content = file_of(PICTURES[3], "JPEG", exif=exif, quality=95, subsampling=0)
    upright = Image.fromarray(pictures.decode(io.BytesIO(content), "it"))
    assert pictures.check(content, "it") == upright.size == ((28, 88) if orientation > 4 else (88, 28))
    box = lambda width, height: (5, 7, width - 9, height - 11)  # noqa: E731
    want = upright.resize((8, 8), Image.Resampling.BILINEAR, box=(5, 7, upright.width - 4, upright.height - 4))
    np.testing.assert_array_equal(pictures.view(content, "it", 8, box, gap=99), np.asarray(want))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_pixel_becomes_three_channels_of_bytes(mode):
    grey = np.linspace(0, 255, 24 * 20).reshape(24, 20).astype(np.uint8)
    if mode == "I;16":
        picture, want = Image.fromarray(grey.astype(np.uint16) * 257), grey
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
        want = np.asarray(picture.convert("RGB"))[..., 0]
    file = io.BytesIO()
    picture.save(file, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
    got = pictures.view(file.getvalue(), "it", 20, lambda width, height: (0, 0, width, 20))
    np.testing.assert_allclose(got[..., 0].astype(int), want[:20], atol=1)
    assert got.shape == (20, 20, 3)
    if mode != "P":  # whose palette has no greys between its own
        np.testing.assert_array_equal(got, got[..., :1].repeat(3, axis=2))


def test_what_is_transparent_lies_on_white():
    clear = np.zeros((8, 8, 4), np.uint8)
    assert pictures.view(file_of(clear), "it", 8, pictures.centre(1.0)).min() == 255


# ---------------------------------------------------------------- what cannot be read


def bomb(width=20_000, height=20_000):
    """A PNG file of 100 bytes that says it has 400 million pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = file_of(PICTURES[0], "JPEG")
BAD = {
    "bomb": (bomb(), r"could be decompression bomb"),
    "small bomb": (bomb(10_000, 9_000), r"it has 10000 x 9000 pixels; 89,478,485 are read at most|90000000 pixels"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "is not a readable picture"),
    "cut PNG": (file_of(PICTURES[0])[:-30], "is not a readable picture"),
    "empty": (b"", "it has none of the formats PNG, JPEG"),
    "text": (b"a cat", "it has none of the formats PNG, JPEG"),
    "no size": (bomb(0, 5), "is not a readable picture"),
    "deep": (b"", "floating-point numbers"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("error")
def test_a_picture_that_cannot_be_read_is_a_bad_record_of_one_line(kind, photos):
    content, says = BAD[kind]
    if kind == "deep":
        file = io.BytesIO()
        Image.fromarray(np.ones((5, 5), np.float32)).save(file, "TIFF")
        content = file.getvalue()
    (photos / "train" / "dog" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=says) as refused:
        data(photos).open("train")
    assert str(refused.value).count("bad.png") >= 1
    assert "\n" not in str(refused.value)
    assert not [path for path in (photos / "cache").rglob("*") if path.name == "data.bin"], "nothing half written"
    rows = data(photos, max_bad_records=1).open("train")
    assert len(rows) == 12
    assert rows.meta["bad_records"][0][0].endswith("bad.png")


def test_a_tar_that_is_cut_short_is_one_line_and_leaves_nothing(tmp_path):
    members = {f"{i}.{kind}": x for i in range(5) for kind, x in (("png", file_of(PICTURES[0])), ("cls", b"1"))}
    path = tmp_path / "all.tar"
    tar_of(path, members)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 10_240 + 100, 700):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"all\.tar is cut short or damaged") as refused:
            data(tmp_path, TarFiles(str(path), str(path))).open("train")
        assert "\n" not in str(refused.value)
        assert not list(tmp_path.rglob("data.bin"))
    path.write_bytes(whole)
    assert len(data(tmp_path, TarFiles(str(path), str(path))).open("train")) == 5


@pytest.mark.parametrize("first", ["a local file", "content"])
def test_a_picture_of_another_form_than_the_first_is_a_bad_record(first, tmp_path):
    path, content = tmp_path / "cat.png", file_of(PICTURES[0])
    path.write_bytes(content)
    records = [(str(n), {"image": image, "label": n}) for n, image in enumerate([path, content, path])]
    records, other = (records, "content") if first == "a local file" else (records[1:], "a local file")
    bad, right = BadRecords(5), lambda record: ""
    assert encoded.write(tmp_path, "train", iter(records), right, bad) == len(records) - 1
    reason = f"its picture is {other}, the first record's is {first}; give all in one form"
    assert bad.skipped == [(records[1][0], reason)]
    rows = encoded.load(tmp_path)
    assert [rows.content(n)[0] for n in range(len(rows))] == [content] * len(rows)


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_file_that_changes_while_a_run_reads_it_is_one_line(change, photos):
    rows = data(photos).open("train")
    path = photos / "train" / "cat" / "1.png"
    path.write_bytes(file_of(PICTURES[0])) if change == "other" else path.unlink()
    says = (
        "has changed since its split was prepared; start again" if change == "other" else "cannot be read: No such file"
    )
    with pytest.raises(ValueError, match=rf"1\.png {says}"):
        rows.batch(np.arange(4), None)
    assert len(data(photos).open("train")) == (12 if change == "other" else 11), "a new start reads it anew"


def test_a_folder_that_was_moved_is_found_again(photos):
    data(photos).open("train")
    (photos / "train").rename(photos / "moved")
    moved = ImageFolders(str(photos / "moved"), str(photos / "validation"))
    assert data(photos, moved).open("train").batch(np.arange(2), None)["image"].shape == (2, 16, 16, 3)


def test_a_set_without_examples_is_one_line(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="the train split of .* has no examples"):
        data(tmp_path).open("train")


def test_of_a_bucket_the_bytes_are_kept_and_silence_is_no_bad_picture(tmp_path, monkeypatch):
    record = {"image": paths.remote("gs://photos/cat.png"), "label": 1}
    bad, right = BadRecords(5), lambda record: ""
    monkeypatch.setattr(paths, "read", lambda path: file_of(PICTURES[0]))
    assert encoded.write(tmp_path, "train", iter([("cat.png", record)] * 2), right, bad) == 2
    rows = encoded.load(tmp_path)
    assert (rows.by_path, bytes(rows.content(1)[0])) == (False, file_of(PICTURES[0]))

    def silent(path):
        raise paths.Unanswered(f"{path}: the store does not answer")

    monkeypatch.setattr(paths, "read", silent)
    with pytest.raises(paths.Unanswered, match=r"gs://photos/cat\.png: the store does not answer"):
        encoded.write(tmp_path, "train", iter([("cat.png", record)]), right, bad)
    assert bad.skipped == []
