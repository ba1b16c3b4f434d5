"""WebDataset tars: members grouped into records, read front to back; a tar that is cut short is one
line."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.data import ImageData, TarFiles
from bigmodel_jax.data.base import BadRecords


def png(shade, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tar(path, members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    content = file.getvalue()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


MEMBERS = [
    ("./a/0.png", png(10)),
    ("./a/0.txt", b"the first"),
    ("a/0.json", json.dumps({"licence": "CC0"}).encode()),
    ("a/1.seg.png", png(20)),
    ("a/1.cls", b"1\n"),
    ("a/1.npy", b"left out"),
    ("b/1.txt", "zweites schön".encode()),
]


def records(path, limit=0, **fields):
    bad = BadRecords(limit)
    return list(TarFiles(str(path), **fields).records("train", None, bad)), bad.skipped


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_members_of_one_key_are_one_record(name, tmp_path):
    found, _ = records(tar(tmp_path / name, MEMBERS))
    assert [where.split()[-1] for where, _ in found] == ["a/0", "a/1", "b/1"]
    first, second, third = (record for _, record in found)
    assert first.pop("image").shape == (4, 6, 3)
    assert first == {"text": "the first", "licence": "CC0"}
    assert (second.pop("image") == [20, 0, 0]).all()
    assert second == {"label": 1}
    assert third == {"text": "zweites schön"}


def test_pictures_are_scaled_and_a_field_becomes_the_text(tmp_path):
    path = tar(tmp_path / "a.tar", [("0.png", png(10)), ("0.json", b'{"caption": "red"}')])
    ((_, record),) = records(path, image_size=2, text_field="caption")[0]
    assert record["image"].shape == (2, 2, 3)
    assert record["text"] == "red"


def test_a_tar_that_is_cut_short_is_one_line(tmp_path):
    whole = tar(tmp_path / "a.tar", MEMBERS * 30).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512  # of the last member: what follows is the tar's end
    for name, content in (
        ("middle", whole[: len(whole) // 2 + 100]),
        ("end", whole[:end]),
        ("header", whole[: end - 512 - 412]),
        ("garbage", whole[: end - 1024] + b"x" * 1024 + whole[end:]),
        ("other", b"abc" * 1000),
        ("empty", b""),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^\S+{name}\.tar is cut short or damaged: [^\n]+$"):
            records(path)
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(gzip.compress(whole)[:-200])
    with pytest.raises(ValueError, match=r"^\S+cut\.tar\.gz is cut short or damaged: [^\n]+$"):
        records(path)


def test_bad_members_are_bad_records(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        [("0.png", png(1)[:40]), ("1.cls", b"one"), ("2.json", b"[1]"), ("3.txt", b"\xff"), ("4.txt", b"fine")],
    )
    found, skipped = records(path, limit=4)
    assert [record for _, record in found] == [{"text": "fine"}]
    assert [where.split()[-1] for where, _ in skipped] == list("0123")
    assert skipped[0][1].startswith(".png is not a readable picture (")
    assert skipped[1][1].startswith(".cls is not readable: invalid literal for int()")


def test_labelled_pictures_train_from_tars(tmp_path):
    members = [
        (f"{i}.{end}", content) for i in range(4) for end, content in (("png", png(i)), ("cls", b"%d" % (i % 2)))
    ]
    path = str(tar(tmp_path / "a.tar", members))
    data = ImageData(source=TarFiles(path, path, image_size=4), num_classes=2, cache_dir=str(tmp_path / "cache"))
    batch = data.open("train").batch(np.arange(4), None)
    assert batch["image"].shape == (4, 4, 4, 3)
    assert batch["label"].tolist() == [0, 1, 0, 1]
