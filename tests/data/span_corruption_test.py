"""Span corruption: nothing is lost, lengths are as asked for, and a row is a function of its
noise."""

import numpy as np
import pytest

from bigmodel_jax.data import SpanCorruptionData, TokenizerConfig, shuffle
from bigmodel_jax.data.sources.sources import TextFiles
from bigmodel_jax.data.text.span_corruption import noise_mask, num_noise, random_lengths, replace_spans

TEXT = "Thank you for inviting me to your party last week, where naïve guests sang until the morning. " * 7
SENTINEL = 257  # the first id above the bytes and the separator
NOISE = shuffle.noise(shuffle.start(3), np.arange(4))


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return SpanCorruptionData(
        cache_dir=str(tmp_path / "cache"),
        source=TextFiles(train=str(tmp_path / "text.txt"), validation=str(tmp_path / "text.txt")),
        tokenizer=TokenizerConfig("bytes"),
        seq_len=40,
    )


def restored(source: list[int], target: list[int]) -> list[int]:
    """The row as it was: each sentinel of the source replaced by what follows it in the target."""
    spans = {}
    for token in target:
        if token >= SENTINEL:
            spans[token] = []
        elif spans:
            spans[list(spans)[-1]].append(token)
    return [t for token in source for t in (spans[token] if token >= SENTINEL else [token])]


@pytest.mark.parametrize("noise", [None, NOISE], ids=["evaluation", "training"])
def test_no_token_is_lost(data, noise):
    rows = data.open("train")
    indices = np.arange(len(rows) if noise is None else len(noise))
    batch = rows.batch(indices, noise)
    whole = []
    for row in indices:
        source = batch["encoder_tokens"][row, batch["encoder_segment_ids"][row] > 0]
        target = batch["targets"][row, batch["weights"][row] > 0]
        assert source[-1] == target[-1] == rows.separator
        assert batch["tokens"][row, 0] == rows.separator
        np.testing.assert_array_equal(batch["tokens"][row, 1 : len(target)], target[:-1])
        assert source[source >= SENTINEL].tolist() == target[target >= SENTINEL].tolist()
        whole += restored(source[:-1].tolist(), target[:-1].tolist())
    np.testing.assert_array_equal(whole, rows.stream[1 : 1 + len(whole)])
    assert noise is not None or len(whole) == len(rows.stream) - 1


def test_lengths_are_those_of_the_paper(data):
    """15 % of 40 tokens in spans of 3 are 6 tokens in 2 spans, with a separator on both sides."""
    batch = data.open("train").batch(np.arange(3), None)
    assert batch["encoder_tokens"].shape == (3, 40 - 6 + 2 + 1)
    assert batch["tokens"].shape == batch["targets"].shape == batch["positions"].shape == (3, 6 + 2 + 1)
    assert data.requirements() == {"vocab_size": 257 + 2, "max_seq_len": 40, "text_bos": False}
    assert num_noise(512, 0.15, 3.0) == (77, 26)


def test_a_row_is_a_function_of_its_noise(data):
    rows = data.open("train")
    one, two = rows.batch(np.arange(4), NOISE), rows.batch(np.arange(4)[::-1], NOISE[::-1])
    for name, array in one.items():
        np.testing.assert_array_equal(array[::-1], two[name])
    other = rows.batch(np.arange(4), NOISE + np.uint64(1))
    assert (one["targets"] != other["targets"]).any(axis=1).all()
    first, second = (rows.batch(np.arange(4), None) for _ in range(2))
    np.testing.assert_array_equal(first["targets"], second["targets"])


def test_evaluation_knows_the_bytes_that_were_taken_out(data):
    rows = data.open("validation")
    batch = rows.batch(np.arange(len(rows)), None)
    text_targets = (batch["weights"] > 0) & (batch["targets"] < SENTINEL) & (batch["targets"] != rows.separator)
    np.testing.assert_array_equal(batch["target_bytes"] * (batch["weights"] > 0), text_targets)
    assert "target_bytes" not in rows.batch(np.arange(2), NOISE[:2])


@pytest.mark.parametrize("length", [2, 3, 7, 40, 512])
def test_spans_alternate_and_hold_as_many_tokens_as_asked_for(length):
    num_tokens, num_spans = num_noise(length, 0.15, 3.0)
    masks = np.stack([noise_mask(np.random.default_rng(n), length, 0.15, 3.0) for n in range(200)])
    assert masks.shape == (200, length)
    assert (masks.sum(1) == num_tokens).all()
    assert (np.diff(masks.astype(int), axis=1) == 1).sum(1).tolist() == [num_spans] * 200
    assert not masks[:, 0].any()
    assert masks[:, -1].all()


def test_all_cuts_are_equally_likely():
    rng = np.random.default_rng(0)
    cuts = [tuple(random_lengths(rng, 5, 3)) for _ in range(3000)]
    counts = {cut: cuts.count(cut) for cut in set(cuts)}
    assert len(counts) == 6  # 4 choose 2
    assert max(abs(n - 500) for n in counts.values()) < 90


def test_the_papers_example():
    """The paper's sentence is: Thank you (for inviting) me to your party (last) week ."""
    gone = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0], bool)
    ids = np.arange(len(gone))
    assert replace_spans(ids, gone, 100).tolist() == [0, 1, 100, 4, 5, 6, 7, 101, 9, 10]
    assert replace_spans(ids, ~gone, 100).tolist() == [100, 2, 3, 101, 8, 102]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"noise_density": 1.0}, "data.noise_density: 1.0 must be above 0 and below 1"),
        ({"mean_span": 0.5}, "data.mean_span: 0.5 must be 1 or more"),
        ({"seq_len": 1}, "data.seq_len: 1 must be 2 or more"),
    ],
)
def test_impossible_settings_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        SpanCorruptionData(**change)
