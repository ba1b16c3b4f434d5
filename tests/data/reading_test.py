"""Every form of text that a config can name gives the same documents, by glob patterns and paths,
to the tokens of a row."""

import gzip
import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bigmodel_jax.data import (
    ArrayRecordFiles,
    HuggingFaceDataset,
    JsonlFiles,
    TableFiles,
    TarFiles,
    TextData,
    TextFiles,
    TokenizerConfig,
)
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.corpus.folder import Shards
from bigmodel_jax.data.sources.array_record_files import json_line

FILES = {"part-a": ["first schön", "second"], "part-b": ["third"], "other": ["the fourth, apart"]}
TEXTS = [text for texts in FILES.values() for text in texts]


def lines(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def table(separator):
    """Writes columns, a number before the text, which is in quotes."""
    return lambda texts: "".join([f"n{separator}text\n", *(f'1{separator}"{t}"\n' for t in texts)]).encode()


def parquet(texts) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), out)
    return out.getvalue()


def tar(texts) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for i, text in enumerate(texts):
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = len(text.encode())
            file.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def zstd(content) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


# end of the file's name: (source, the bytes of some texts)
FORMS = {
    ".jsonl": (JsonlFiles, lines),
    ".jsonl.gz": (JsonlFiles, lambda texts: gzip.compress(lines(texts))),
    ".jsonl.zst": (JsonlFiles, lambda texts: zstd(lines(texts))),
    ".json": (TableFiles, lambda texts: json.dumps([{"text": text} for text in texts]).encode()),
    ".csv": (TableFiles, table(",")),
    ".tsv": (TableFiles, table("\t")),
    ".parquet": (TableFiles, parquet),
    ".tar": (TarFiles, tar),
    ".tar.gz": (TarFiles, lambda texts: gzip.compress(tar(texts))),
}


def documents(source, root) -> list[str]:
    """The documents in the rows of training, through the cache."""
    data = TextData(source=source, tokenizer=TokenizerConfig("bytes"), seq_len=8, cache_dir=str(root / "cache"))
    tokenizer, found = data.open_tokenizer(), data.open("train")
    return [tokenizer.decode(found.document(i)) for i in range(len(found.offsets) - 1)]


@pytest.mark.parametrize("end", FORMS)
def test_a_form_of_files_is_read_by_globs_and_paths(end, tmp_path):
    source, write = FORMS[end]
    for name, texts in FILES.items():
        (tmp_path / f"{name}{end}").write_bytes(write(texts))
    (tmp_path / "left-out.bin").write_bytes(b"\xff")
    assert documents(source(f"{tmp_path}/part-*{end},{tmp_path}/other{end}"), tmp_path) == TEXTS


def test_text_files_are_read_by_globs_in_folders_too(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "a.txt").write_text(text)
    assert documents(TextFiles(f"{tmp_path}/*/a.txt"), tmp_path) == TEXTS


def test_array_record_shards_are_read_by_globs(tmp_path):
    shards = Shards(tmp_path, {})
    for texts in FILES.values():
        for text in texts:
            shards.write("train", json_line({"text": text}))
        shards.close()
    assert len(list(tmp_path.glob("train-*.array_record"))) == 3
    assert documents(ArrayRecordFiles(f"{tmp_path}/train-*.array_record"), tmp_path) == TEXTS


@pytest.mark.parametrize(
    ("source", "end"), [(TableFiles, ".jsonl"), (TarFiles, ".tar"), (ArrayRecordFiles, ".array_record")]
)
def test_a_field_that_is_named_and_not_there_is_said_and_no_other_is_read(source, end, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS))
    (tmp_path / "a.tar").write_bytes(tar(TEXTS))
    shards = Shards(tmp_path, {})
    shards.write("a", json_line({"text": "one"}))
    shards.close()
    wrong = r"no field 'txt' \(data\.source\.text_field\) \(perhaps you meant 'text'\)"
    with pytest.raises(ValueError, match=wrong):
        list(source(f"{tmp_path}/a*{end}", text_field="txt").records("train", tmp_path, BadRecords(0)))


def make_dataset():
    return pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS, "n": np.arange(4)})


def test_a_hugging_face_dataset_is_read_where_it_is_installed(tmp_path):
    pytest.importorskip("datasets")
    assert documents(HuggingFaceDataset(make_dataset), tmp_path) == TEXTS
