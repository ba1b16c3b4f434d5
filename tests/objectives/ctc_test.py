"""CTC: its greedy labels, alignments and rates against what can be counted by hand. Its loss:
tests/parity/parakeet_test.py."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.models.base import Out
from bigmodel_jax.objectives import CTC
from bigmodel_jax.objectives.ctc_paths import IMPOSSIBLE, NONE, align, best_prefix, greedy, stretches
from configs import speech_words

V, T = 4, 5


def collapsed(path):
    return [int(k) for k, _ in itertools.groupby(path) if k != 0]


def every_path(log_probs):
    """(path, log-probability) of all V ** T of them."""
    for path in itertools.product(range(V), repeat=T):
        yield path, sum(log_probs[t, k] for t, k in enumerate(path))


@pytest.fixture
def log_probs():
    return np.asarray(jax.nn.log_softmax(2 * np.random.default_rng(0).standard_normal((T, V))), np.float64)


def test_greedy_labels_leave_out_blanks_repetitions_and_padding():
    best = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0], [3, 3, 3, 2, 2, 2]])
    found = greedy(jax.nn.one_hot(best, V), np.array([6, 6, 4]), 0)
    assert np.asarray(found).tolist() == [
        [1, 1, 2, NONE, NONE, NONE],
        [NONE] * 6,
        [3, 2, NONE, NONE, NONE, NONE],
    ]


@pytest.mark.parametrize("labels", [[1, 2], [2, 2], [3], [], [1, 1, 1]], ids=str)
def test_the_alignment_is_the_likeliest_of_all_paths(log_probs, labels):
    padded, num = np.array([labels + [0] * (3 - len(labels))], np.int32), np.array([len(labels)])
    found = align(log_probs[None], np.array([T]), padded, num, blank=0)
    best = max((p for p in every_path(log_probs) if collapsed(p[0]) == labels), key=lambda p: p[1])
    assert found.log_prob[0] == pytest.approx(best[1], abs=1e-5)
    said = [labels[n] if n != NONE else 0 for n in np.asarray(found.label[0])]
    assert said == list(best[0])


def test_an_alignment_keeps_to_a_rows_own_frames(log_probs):
    padded = np.array([[1, 2, 0]], np.int32)
    short = align(log_probs[None, :3], np.array([3]), padded, np.array([2]), blank=0)
    long = align(log_probs[None], np.array([3]), padded, np.array([2]), blank=0)
    assert np.asarray(long.label[0]).tolist() == [*np.asarray(short.label[0]).tolist(), NONE, NONE]
    none = align(log_probs[None, :2], np.array([2]), np.array([[1, 1, 0]], np.int32), np.array([2]), blank=0)
    assert none.log_prob[0] <= IMPOSSIBLE


def test_stretches_of_an_alignment():
    assert stretches(np.array([NONE, 0, 0, NONE, 1, NONE])) == [(0, 1, 3), (1, 4, 5)]
    assert stretches(np.array([NONE, NONE])) == []


def test_a_beam_that_keeps_all_prefixes_finds_the_likeliest_labels(log_probs):
    sums = {}
    for path, value in every_path(log_probs):
        key = tuple(collapsed(path))
        sums[key] = np.logaddexp(sums.get(key, -np.inf), value)
    labels, value = best_prefix(log_probs, blank=0, beams=10_000)
    assert tuple(labels) == max(sums, key=sums.get)
    assert value == pytest.approx(max(sums.values()))


def test_a_beam_sums_alignments_where_the_likeliest_path_misleads():
    """In each of the two frames a blank is likeliest, and yet a label in either frame is likelier
    than none."""
    frame = np.log([0.6, 0.4])
    assert np.asarray(greedy(np.stack([frame, frame])[None], np.array([2]), 0)).tolist() == [[NONE, NONE]]
    assert best_prefix(np.stack([frame, frame]), blank=0, beams=4)[0] == [1]


def batch_of(rows):
    most = 4  # one shape for all, which compiles once
    labels = np.array([[*row, *[0] * (most - len(row))] for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    return {"labels": labels, "num_labels": lengths, "weights": np.ones(len(rows), np.float32)}


def heard(rows, frames=12):
    """Logits of a model that is sure of these labels, a blank between them."""
    paths = [[k for label in row for k in (label, 0)] for row in rows]
    logits = np.stack([20.0 * np.eye(9)[path + [0] * (frames - len(path))] for path in paths])
    return Out({"logits": jnp.asarray(logits), "num_frames": jnp.full(len(rows), frames)})


def rates(said, heard_rows, weights=None):
    batch = batch_of(said)
    batch["weights"] = batch["weights"] if weights is None else np.array(weights, np.float32)
    return CTC().summarize(jax.tree.map(np.asarray, score(heard(heard_rows), batch)))


@jax.jit
def score(out, batch):
    return CTC().score(out, batch, params=None, train=False).metrics


def test_rates_count_words_and_characters():
    said = [[2, 3, 1, 4], [5, 1, 6]]
    assert rates(said, said)["wer"] == rates(said, said)["cer"] == 0
    one = rates(said, [[2, 3, 1, 4], [5, 1, 7]])
    assert one["wer"] == pytest.approx(1 / 4)
    assert one["cer"] == pytest.approx(1 / 7)
    assert rates(said, [[2, 3, 1, 4], [7, 1, 7]], weights=[1, 0])["wer"] == 0


def test_what_is_heard_in_silence_counts_and_silence_heard_rightly_does_not():
    assert rates([[2, 1, 3], []], [[2, 1, 3], []])["wer"] == 0
    found = rates([[2, 1, 3], []], [[2, 1, 3], [4, 1, 5]])
    assert found["wer"] == pytest.approx(2 / 2)
    assert found["cer"] == pytest.approx(3 / 3)
    assert rates([[], []], [[], []])["wer"] == 0
    assert rates([[], [2]], [[], []])["wer"] == 1


@pytest.mark.slow
def test_the_loss_is_per_label_and_a_row_of_weight_0_adds_nothing():
    said, out = [[2, 3], [4, 4, 5]], heard([[2, 3], [4, 5]])
    whole = CTC().score(out, batch_of(said), params=None, train=True).mean
    assert float(whole.count) == 5
    filled = batch_of(said) | {"weights": np.array([1, 0], np.float32)}
    one = CTC().score(out, filled, params=None, train=True).mean
    alone = (
        CTC().score(out, batch_of([[2, 3], [2, 3, 4]]) | {"weights": filled["weights"]}, params=None, train=True).mean
    )
    assert float(one.count) == 2
    assert float(one.total) == float(alone.total)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blank": 29}, "objective.blank = 29; it must be below model.vocab_size = 29"),
        ({"space": 5}, "objective.space = 5, but the data's is 1; it must be 1"),
    ],
)
def test_classes_that_the_model_or_the_data_lack_are_one_line(fields, message):
    config = speech_words.get_config()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config.objective, **fields).validate(config)
