import json
import logging
import lzma

import numpy as np
import pytest

from bigmodel_jax.data.sources.sources import JsonlFiles, TextFiles
from bigmodel_jax.data.text import baseline, text
from bigmodel_jax.data.text.text import TextData
from bigmodel_jax.data.tokenizers.tokenizers import TokenizerConfig, load_tokenizer

DOCUMENTS = ["the first document, naïvely short", "two " * 40, "日本語 and <|endoftext|> inside", "x"]
BYTES = TokenizerConfig("bytes")


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return str(path)


@pytest.fixture
def config(tmp_path):
    source = JsonlFiles(write_jsonl(tmp_path / "t.jsonl", DOCUMENTS * 3), write_jsonl(tmp_path / "v.jsonl", DOCUMENTS))
    return TextData(cache_dir=str(tmp_path / "cache"), source=source, tokenizer=BYTES, seq_len=16)


def rows_of(cfg, split="validation"):
    rows = cfg.open(split)
    return rows, rows.batch(np.arange(len(rows)), None)


@pytest.mark.parametrize("packing", ["concat", "first_fit", "best_fit", "none"])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_evaluation_counts_every_byte_once(config, packing, kind):
    import dataclasses

    cfg = dataclasses.replace(config, packing=packing, tokenizer=TokenizerConfig(kind, vocab_size=300))
    rows, batch = rows_of(cfg)
    counted = (batch["target_bytes"] * batch["weights"]).sum()
    assert counted == sum(len(d.encode()) for d in DOCUMENTS) == rows.meta["bytes"]
    # Beside the bytes: one end of text per document.
    assert ((batch["targets"] == rows.separator) & (batch["weights"] > 0)).sum() == len(DOCUMENTS)


def test_documents_survive(config):
    rows, tokenizer = config.open("validation"), text.tokenizer(config)
    assert [tokenizer.decode(rows.document(i)) for i in range(len(DOCUMENTS))] == DOCUMENTS


def test_training_batches_hold_only_what_training_needs(config):
    batch = config.open("train").batch(np.arange(2), np.zeros(2, np.uint64))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "tokens": ((2, 16), "int32"),
        "targets": ((2, 16), "int32"),
        "segment_ids": ((2, 16), "int32"),
        "positions": ((2, 16), "int32"),
        "weights": ((2, 16), "float32"),
    }


def test_changed_data_is_read_again(config, tmp_path):
    assert config.open("validation").meta["documents"] == 4
    write_jsonl(tmp_path / "v.jsonl", DOCUMENTS[:2])
    assert config.open("validation").meta["documents"] == 2


def test_warm_open_reads_no_text(config, monkeypatch):
    before = config.open("train")
    monkeypatch.setattr(JsonlFiles, "records", None)
    np.testing.assert_array_equal(config.open("train").stream[:], before.stream[:])


def test_requirements_and_artifacts(config, tmp_path):
    assert config.requirements() == {"vocab_size": 257, "max_seq_len": 16}
    config.save_artifacts(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").decode([ord("a") + 1]) == "a"


def test_a_tokenizer_file_is_used(config, tmp_path):
    import dataclasses

    config.save_artifacts(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    from_file = dataclasses.replace(config, tokenizer=TokenizerConfig(path=path))
    np.testing.assert_array_equal(from_file.open("train").stream[:], config.open("train").stream[:])


def test_xz_is_cached_and_priming_helps(tmp_path, monkeypatch):
    words = np.random.default_rng(0).choice(list("abcdefghijklmnop "), 4000)
    source = TextFiles(str(tmp_path / "t.txt"), str(tmp_path / "v.txt"))
    (tmp_path / "t.txt").write_text("".join(words))
    (tmp_path / "v.txt").write_text("".join(words[:2000]))
    cfg = TextData(cache_dir=str(tmp_path / "cache"), source=source, tokenizer=BYTES)
    alone, primed = text.xz_baseline(cfg)
    assert primed < 0.2 < 3 < alone < 8  # all of the validation text stands in the training text
    monkeypatch.setattr(TextFiles, "records", None)
    assert cfg.baselines() == {"xz_bits_per_byte": alone, "xz_primed_bits_per_byte": primed}


def test_a_long_text_is_sampled_evenly_and_not_read_to_its_end(monkeypatch):
    """Forty documents of 98 bytes fill a limit of 4,000. From a longer text every n-th document is
    taken, among those that READ bytes hold."""
    monkeypatch.setattr(baseline, "READ", 100_000)
    seen = []

    def documents(num):
        for i in range(num):
            seen.append(i)
            yield f"{i:098d}"

    whole = baseline.sample(documents(40), 4000)
    assert whole == "\n\n".join(f"{i:098d}" for i in range(40)).encode(), "a text within the limit is taken whole"
    parts = baseline.sample(documents(400), 4000).split(b"\n\n")
    assert [int(part) for part in parts] == list(range(0, 400, 10))
    seen.clear()
    assert len(baseline.sample(documents(10**9), 4000)) <= 4000
    assert len(seen) == 1000
    assert baseline.sample(["x" * 9000], 4000) == b"x" * 4000


def test_a_window_of_the_texts_length_changes_no_size():
    rng = np.random.default_rng(0)
    sample = b" ".join(rng.choice([b"peace", b"war", b"the", b"state", b"of"], 30_000).tolist())
    assert baseline._compressed(sample) == len(lzma.compress(sample, preset=9 | lzma.PRESET_EXTREME))


# ---------------------------------------------------------------- bad records

GOOD = b'{"text": "good"}\n'
BAD_LINES = {
    "cut short": (b'{"text": "hal', "not JSON"),
    "not utf-8": (b'{"text": "\xff"}\n', "not UTF-8"),
    "not an object": (b"[1]\n", "JSON object"),
    "misspelt field": (b'{"texts": "a"}\n', "perhaps you meant 'texts'"),
    "not a string": (b'{"text": 7}\n', "not a string"),
    "empty": (b'{"text": " "}\n', "empty"),
    "lone surrogate": (b'{"text": "\\ud800"}\n', "not encodable"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_record_is_named_or_skipped(tmp_path, caplog, case):
    line, reason = BAD_LINES[case]
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD + line.rstrip(b"\n") + b"\n" + GOOD)

    def cfg(limit):
        source = JsonlFiles(str(path), str(path))
        return TextData(cache_dir=str(tmp_path), source=source, tokenizer=BYTES, max_bad_records=limit)

    with pytest.raises(ValueError, match=reason) as error:
        cfg(0).open("train")
    assert f"{path} line 2" in str(error.value)
    assert "data.max_bad_records: 0" in str(error.value)
    assert "\n" not in str(error.value)
    for _ in range(2):  # prepared now, then found in the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            rows = cfg(1).open("train")
        assert rows.meta["documents"] == 2
        assert f"{path} line 2: " in caplog.text


def test_one_more_than_the_limit_is_an_error(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD + b"[]\n" * 3)
    cfg = TextData(cache_dir=str(tmp_path), source=JsonlFiles(str(path)), tokenizer=BYTES, max_bad_records=2)
    with pytest.raises(ValueError, match=r"line 4: .*after 2 others"):
        cfg.open("train")


BAD_SOURCES = {
    "no file": (TextFiles("{dir}/none*.txt"), r"data\.source\.train: '.*none\*\.txt' matches no file"),
    "no pattern": (TextFiles(), r"data\.source\.train: empty"),
    "not utf-8": (TextFiles("{dir}/latin.txt"), r"latin\.txt: not UTF-8"),
    "empty data": (JsonlFiles("{dir}/empty.jsonl"), r"the train split .* has no documents"),
    "blank text": (TextFiles("{dir}/blank.txt"), r"blank\.txt: empty"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_source_is_one_line(tmp_path, case):
    import dataclasses

    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.txt").write_text(" \n")
    source, message = BAD_SOURCES[case]
    source = dataclasses.replace(source, train=source.train.format(dir=tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        TextData(cache_dir=str(tmp_path / "c"), source=source, tokenizer=BYTES).open("train")
    assert "\n" not in str(error.value)


def test_sequence_length_must_be_positive():
    with pytest.raises(ValueError, match=r"data\.seq_len: 0"):
        TextData(seq_len=0)
