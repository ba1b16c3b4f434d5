"""Orders of prediction: which places, in which order, and that both are a function of the row's
noise alone."""

import numpy as np
import pytest

from bigmodel_jax.data import PermutedTextData, TextData, TextFiles, TokenizerConfig, shuffle
from bigmodel_jax.data.text import permutation

ALLOWED = np.broadcast_to(np.arange(24) % 6 > 0, (300, 24))
NOISE = shuffle.noise(shuffle.start(3), np.arange(300))


def test_places_and_order():
    order, places = permutation.permute(ALLOWED, NOISE, 5)
    assert not order[~ALLOWED].any()
    np.testing.assert_array_equal(np.sort(order, axis=1)[:, -6:], np.broadcast_to([0, 1, 2, 3, 4, 5], (300, 6)))
    np.testing.assert_array_equal(places, np.argwhere(order > 0)[:, 1].reshape(300, 5))
    share = (order > 0).mean(0)[ALLOWED[0]]
    assert abs(share - 0.25).max() < 5 * (0.25 * 0.75 / 300) ** 0.5, "every place alike"
    first = (order == 1).sum(0)[ALLOWED[0]] / 300
    assert abs(first - 0.05).max() < 5 * (0.05 * 0.95 / 300) ** 0.5, "every place alike often first"


def test_only_the_rows_noise_decides():
    whole, part = permutation.permute(ALLOWED, NOISE, 5), permutation.permute(ALLOWED[7:9], NOISE[7:9], 5)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[7:9], b)


def test_rows_with_too_few_places_are_filled_up():
    allowed = np.zeros((1, 8), bool)
    allowed[0, 3] = True
    order, places = permutation.permute(allowed, NOISE[:1], 4)
    np.testing.assert_array_equal(order[0], np.arange(8) == 3)
    assert places.shape == (1, 4)
    assert 3 in places


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return {
        "source": TextFiles(train=str(tmp_path / "text.txt"), validation=str(tmp_path / "text.txt")),
        "tokenizer": TokenizerConfig(kind="bytes"),
        "seq_len": 32,
        "cache_dir": str(tmp_path / "cache"),
    }


def test_rows_ask_for_tokens_that_stand_there(data):
    plain, rows = TextData(**data).open("train"), PermutedTextData(**data).open("train")
    batch = rows.batch(np.arange(5), NOISE[:5])
    np.testing.assert_array_equal(batch["tokens"], plain.batch(np.arange(5), NOISE[:5])["tokens"])
    np.testing.assert_array_equal(batch["targets"], np.take_along_axis(batch["tokens"], batch["places"], 1))
    assert batch["places"].shape == (5, 5)
    assert batch["weights"].all()
    assert (rows.batch(np.arange(5), NOISE[5:10])["order"] != batch["order"]).any()
    evaluation = [rows.batch(np.arange(n, 4), None)["order"] for n in (0, 2)]
    np.testing.assert_array_equal(evaluation[0][2:], evaluation[1])


def test_rate_is_checked(data):
    with pytest.raises(ValueError, match=r"data\.predict_rate: 0"):
        PermutedTextData(**data, predict_rate=0.0)
