"""Masked rows: which tokens are hidden, how, and that it is a function of the row's noise alone."""

import numpy as np
import pytest

from bigmodel_jax.data import JsonlFiles, MaskedTextData, TextData, TextFiles, TokenizerConfig, shuffle
from bigmodel_jax.data.text import masking

VOCAB, MASK = 1000, 1000
TOKENS = np.random.default_rng(0).integers(1, VOCAB, (400, 128)).astype(np.int32)
ALLOWED = np.arange(128)[None] % 8 > 0
NOISE = shuffle.noise(shuffle.start(3), np.arange(400))


def hide(rate=0.15, noise=NOISE):
    return masking.hide(TOKENS, np.broadcast_to(ALLOWED, TOKENS.shape), noise, rate, MASK, VOCAB)


def test_shares_of_the_paper():
    """15 % of the tokens are chosen. Of these, 80 % are masked, 10 % random, and 10 % unchanged.
    The bounds are five standard deviations."""
    hidden, chosen = hide()
    n = 400 * ALLOWED.sum()
    assert chosen.sum() == pytest.approx(0.15 * n, abs=5 * (n * 0.15 * 0.85) ** 0.5)
    assert not chosen[:, ~ALLOWED[0]].any()
    np.testing.assert_array_equal(hidden[~chosen], TOKENS[~chosen])
    picked, were = hidden[chosen], TOKENS[chosen]
    masked, same = picked == MASK, picked == were
    for share, want in ((masked, 0.8), (same, 0.1 + 0.1 / VOCAB)):
        assert share.mean() == pytest.approx(want, abs=5 * (want * (1 - want) / len(picked)) ** 0.5)
    random = picked[~masked & ~same]
    assert random.min() < VOCAB // 10
    assert random.max() > VOCAB - VOCAB // 10
    assert random.mean() == pytest.approx(VOCAB / 2, abs=5 * VOCAB / 12**0.5 / len(random) ** 0.5)


def test_places_are_independent():
    """No column and no row is chosen much more often than another."""
    _, chosen = hide()
    for axis, size in ((0, 400), (1, ALLOWED.sum())):
        share = chosen.sum(axis)[ALLOWED[0] if axis == 0 else slice(None)] / size
        assert abs(share - 0.15).max() < 6 * (0.15 * 0.85 / size) ** 0.5


def test_only_the_rows_noise_decides():
    whole, part = hide(), masking.hide(TOKENS[7:9], np.broadcast_to(ALLOWED, (2, 128)), NOISE[7:9], 0.15, MASK, VOCAB)
    np.testing.assert_array_equal(whole[0][7:9], part[0])
    np.testing.assert_array_equal(whole[1][7:9], part[1])
    assert (hide(noise=NOISE + np.uint64(1))[1] != whole[1]).any()


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return {
        "source": TextFiles(train=str(tmp_path / "text.txt"), validation=str(tmp_path / "text.txt")),
        "tokenizer": TokenizerConfig(kind="bytes"),
        "seq_len": 32,
        "cache_dir": str(tmp_path / "cache"),
    }


def test_rows_ask_for_what_they_hide(data):
    plain, cfg = TextData(**data).open("train"), MaskedTextData(**data)
    rows, index = cfg.open("train"), np.arange(5)
    assert cfg.requirements()["vocab_size"] == 258, "257 bytes and separator, and the mask"
    batch = rows.batch(index, NOISE[:5])
    np.testing.assert_array_equal(batch["targets"], plain.batch(index, NOISE[:5])["tokens"])
    asked = batch["weights"] > 0
    assert 0 < asked.sum() < batch["weights"].size // 3
    np.testing.assert_array_equal(batch["tokens"][~asked], batch["targets"][~asked])
    assert (batch["tokens"] == 257).any()
    assert not (batch["targets"] == 257).any()
    assert not asked[batch["targets"] == rows.separator].any()


def test_separators_are_never_asked_for(data, tmp_path):
    """Sixty documents have two letters each: a third of all tokens are separators, and nine of ten
    tokens are hidden."""
    (tmp_path / "short.jsonl").write_text('{"text": "ab"}\n' * 60)
    source = JsonlFiles(train=str(tmp_path / "short.jsonl"), validation=str(tmp_path / "short.jsonl"))
    rows = MaskedTextData(**data | {"source": source}, mask_rate=0.9).open("train")
    for noise in (NOISE[:5], None):
        batch = rows.batch(np.arange(5), noise)
        separators = (batch["targets"] == rows.separator) & (batch["segment_ids"] > 0)
        assert separators.sum() > 40
        assert not batch["weights"][separators].any()
        assert (batch["tokens"][separators] == rows.separator).all()
        assert batch["weights"].sum() > 60


def test_evaluation_hides_the_same_every_time(data):
    rows = MaskedTextData(**data).open("validation")
    first, again = rows.batch(np.arange(4), None), rows.batch(np.arange(2, 4), None)
    np.testing.assert_array_equal(first["tokens"][2:], again["tokens"])
    other = rows.batch(np.arange(4), NOISE[:4])
    assert (other["tokens"] != first["tokens"]).any()


def test_rate_is_checked(data):
    with pytest.raises(ValueError, match=r"data\.mask_rate: 1\.5"):
        MaskedTextData(**data, mask_rate=1.5)
