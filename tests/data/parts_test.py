"""A source as several: their records, one after another, are its own."""

from bigmodel_jax.data import TextFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.corpus.parts import parts
from bigmodel_jax.data.steps import Steps


def test_a_part_is_a_file(tmp_path):
    for name in ("a[1].txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    source = TextFiles(f"{tmp_path}/*.txt")

    def read(sources):
        return [record for part in sources for record in part.records("train", tmp_path, BadRecords(0))]

    assert len(parts(source, "train", tmp_path)) == 3
    assert read(parts(source, "train", tmp_path)) == read([source])
    cut = Steps(source, (f"{__name__}:twice",))
    assert len(parts(cut, "train", tmp_path)) == 3
    assert read(parts(cut, "train", tmp_path)) == read([cut])
    (tmp_path / "d,e.txt").write_text("d")
    assert parts(source, "train", tmp_path) == [source]


def twice(record):
    return [record, record]
