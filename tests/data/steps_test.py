"""Steps: records dropped, changed and cut up before anything else sees them."""

import dataclasses

import pytest

from bigmodel_jax.core import user_code
from bigmodel_jax.data import Arrays, Steps, TextData, TextFiles, TokenizerConfig
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Words(Source):
    def fingerprint(self, split, root):
        return "words"

    def records(self, split, root, bad):
        for i, text in enumerate(["one two", "", "three"]):
            yield f"record {i}", {"text": text}


def not_empty(record):
    return [record] if record["text"] else []


def words(record):
    for word in record["text"].split():
        yield record | {"text": word}


def twice(record):
    return record


def fails(record):
    raise KeyError("label")


def texts(*steps, limit=0):
    bad = BadRecords(limit)
    return [(where, r["text"]) for where, r in Steps(Words(), steps).records("train", None, bad)], bad.skipped


def test_a_step_drops_changes_and_cuts_up():
    assert texts(not_empty)[0] == [("record 0", "one two"), ("record 2", "three")]
    assert texts(not_empty, words)[0] == [("record 0", "one"), ("record 0", "two"), ("record 2", "three")]
    assert texts()[0] == [("record 0", "one two"), ("record 1", ""), ("record 2", "three")]


def test_what_a_step_raises_is_said_of_the_record(tmp_path):
    with pytest.raises(
        ValueError, match=r"record 0: data\.source\.steps: KeyError: 'label' \(line \d+ of .*steps_test\.py\)"
    ):
        texts(fails)
    assert len(texts(fails, limit=3)[1]) == 3
    with pytest.raises(ValueError, match=r"record 0: .* twice gave 'text'; it must return a list of records"):
        texts(twice)


def test_a_steps_file_is_part_of_the_fingerprint(tmp_path):
    def fingerprint(text):
        path = tmp_path / f"steps{len(text)}.py"
        path.write_text(text)
        return Steps(Words(), (f"{path}:keep",)).fingerprint("train", tmp_path)

    first = "def keep(record):\n    return [record]\n"
    assert fingerprint(first) != Words().fingerprint("train", tmp_path)
    assert fingerprint(first) != fingerprint(first + "\n")
    with pytest.raises(ValueError, match=r"data\.source\.steps: '.*:nothing' is not module:function"):
        Steps(Words(), (f"{__name__}:nothing",)).fingerprint("train", tmp_path)


def test_steps_feed_a_data_config_and_are_named_to_trust_and_provenance(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one two")
    source = Steps(TextFiles(str(path), str(path)), (words,))
    data = TextData(source=source, tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path / "cache"), seq_len=8)
    assert data.open("train").meta["documents"] == 2
    assert data.reads() == {f"data.source.source.{split}": [path] for split in ("train", "validation")}
    assert user_code.functions(data) == [f"{__name__}:words"]
    nested = Steps(Steps(Arrays("a:b"), (words,)), (not_empty,))
    assert sorted(user_code.functions(nested)) == ["a:b", f"{__name__}:not_empty", f"{__name__}:words"]
