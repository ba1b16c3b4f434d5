"""Sentence pairs: where A and B come from, that nothing but their text tells which, and that the
noise alone decides."""

import json

import numpy as np
import pytest

from bigmodel_jax.data import JsonlFiles, SentencePairData, TokenizerConfig, shuffle

DOCUMENTS, ROOM = 6, 29
NOISE = shuffle.noise(shuffle.start(3), np.arange(4000))
CLS, SEP = 258, 0  # the byte tokenizer has a separator; mask and [CLS] are behind its last byte


def text(n: int) -> str:
    """Document n is written in one letter, with sentences of 1 to 9 letters, and a number for
    each."""
    return "".join(chr(ord("a") + n) * (i % 9 + 1) + f"{i}." for i in range(40))


@pytest.fixture
def data(tmp_path):
    def write(documents, **fields) -> SentencePairData:
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
        source = JsonlFiles(train=str(path), validation=str(path))
        fields = {"seq_len": ROOM + 3, "cache_dir": str(tmp_path / "cache")} | fields
        return SentencePairData(source=source, tokenizer=TokenizerConfig(kind="bytes"), **fields)

    return write


@pytest.fixture
def rows(data):
    return data([text(n) for n in range(DOCUMENTS)]).open("train")


def pairs(batch) -> list[tuple[str, str]]:
    """A and B of each row, before tokens were hidden."""
    out = []
    for targets, types, real in zip(batch["targets"], batch["token_types"], batch["segment_ids"] > 0, strict=True):
        assert targets[0] == CLS
        first, second = targets[real & (types == 0)][1:], targets[real & (types == 1)]
        assert first[-1] == second[-1] == SEP
        out.append(tuple(bytes((x[:-1] - 1).tolist()).decode() for x in (first, second)))
    return out


def numbers(rows, count=4000):
    return np.arange(count) % len(rows)


def test_b_follows_or_is_of_another_document(rows):
    batch = rows.batch(numbers(rows), NOISE)
    document = np.searchsorted(rows.documents, numbers(rows), side="right") - 1
    for n, (a, b), label in zip(document, pairs(batch), batch["next_sentence"], strict=True):
        whole = text(n)
        assert a in whole
        assert (a + b in whole) == (label == 0), (a, b)
        letters = [{c for c in side if c.isalpha()} for side in (a, b)]
        assert all(len(x) <= 1 for x in letters), "never of two documents"
        assert label == 0 or not letters[0] & letters[1]


def test_half_of_the_rows_follow(rows):
    labels = rows.batch(numbers(rows), NOISE)["next_sentence"]
    assert labels.mean() == pytest.approx(0.5, abs=5 * 0.5 / len(labels) ** 0.5)


def test_a_ends_where_a_sentence_does(rows):
    assert all(a.endswith(".") for a, _ in pairs(rows.batch(numbers(rows), NOISE)))


def test_every_place_of_a_cut_is_as_likely(rows):
    """Each sentence end in row 0 is the cut about equally often."""
    batch = rows.batch(np.zeros(4000, int), NOISE)
    _, count = np.unique([len(a) for a, _ in pairs(batch)], return_counts=True)
    assert len(count) == text(0)[: ROOM - 1].count(".")
    share = 1 / len(count)
    assert abs(count / 4000 - share).max() < 5 * (share * (1 - share) / 4000) ** 0.5


def test_length_tells_nothing(rows):
    """A random B is as long as the true next text would be, also at its document's end."""
    batch = rows.batch(numbers(rows), NOISE)
    total = (batch["segment_ids"] > 0).sum(axis=1)
    assert (total == np.minimum(rows.plan.lengths[numbers(rows)], ROOM) + 3).all()


def test_rows_ask_for_what_they_hide(rows):
    batch = rows.batch(numbers(rows), NOISE)
    asked = batch["weights"] > 0
    assert 0.13 < asked.sum() / (batch["segment_ids"] > 0).sum() < 0.15
    assert not asked[(batch["targets"] == SEP) | (batch["segment_ids"] == 0)].any()
    np.testing.assert_array_equal(batch["tokens"][~asked], batch["targets"][~asked])
    assert (batch["tokens"][asked] == rows.mask_token).mean() == pytest.approx(0.8, abs=0.02)


def test_noise_alone_decides(rows):
    whole, part = rows.batch(numbers(rows), NOISE), rows.batch(numbers(rows)[7:9], NOISE[7:9])
    for name, x in part.items():
        np.testing.assert_array_equal(whole[name][7:9], x)
    first, again = rows.batch(np.arange(8), None), rows.batch(np.arange(4, 8), None)
    np.testing.assert_array_equal(first["tokens"][4:], again["tokens"])
    assert (first["tokens"] != whole["tokens"][:8]).any()


def test_a_span_without_a_sentence_end_is_cut_in_its_middle(data):
    rows = data(["a" * 40, "b" * 7, "c"]).open("train")
    assert len(rows) == 3, "29 and 11 tokens of the first, 7 of the second, and none of the third"
    found = pairs(rows.batch(np.zeros(500, int), NOISE[:500]))
    assert {len(a) for a, _ in found} == {ROOM // 2}
    assert {b[0] for _, b in found} == {"a", "b"}
    assert max(len(b) for _, b in found if b[0] == "b") == 7, "no document is longer than it is"


def test_what_it_needs_of_a_model(data):
    needs = data([text(n) for n in range(2)]).requirements()
    assert needs == {"vocab_size": 259, "max_seq_len": ROOM + 3, "num_token_types": 2}


def test_errors(data):
    with pytest.raises(ValueError, match=r"data\.source: the train split has 1 documents"):
        data([text(0)]).open("train")
    with pytest.raises(ValueError, match=r"data\.packing = 'concat'"):
        data([text(0)], packing="concat")
    with pytest.raises(ValueError, match=r"data\.seq_len: 4"):
        data([text(0)], seq_len=4)


def test_word_pieces_have_marks_of_their_own(data, tmp_path):
    source = data([text(n) for n in range(DOCUMENTS)]).source
    cfg = SentencePairData(source=source, cache_dir=str(tmp_path / "cache"), seq_len=32)
    rows = cfg.open("train")
    names = [cfg.open_tokenizer().model.token_to_id(t) for t in ("[CLS]", "[SEP]", "[MASK]")]
    assert [rows.cls, rows.separator, rows.mask_token] == names
