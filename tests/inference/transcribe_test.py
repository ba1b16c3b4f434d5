"""Which tokens may come in a transcript, how its times become segments, and what silence is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.inference.transcribe import MOST_BEFORE_FIRST, Rules, Transcriber, allowed

VOCAB, END, TIME = 160, 40, 50
NEVER = np.zeros(VOCAB, bool)
NEVER[41:TIME] = True  # names of languages and the like
FIRST = np.zeros(VOCAB, bool)
FIRST[[3, END]] = True


def written(seed: int, *, times: bool, num: int = 40) -> list[int]:
    """Tokens that random logits and the rules choose."""
    rules = Rules(END, TIME, times, NEVER | (np.arange(VOCAB) >= TIME if not times else False), FIRST)
    draw, tokens, latest = np.random.default_rng(seed), [], 0
    step = jax.jit(lambda *args: allowed(rules, *args))
    for n in range(num):
        last, before = (tokens[-1] if n else 0), (tokens[-2] if n > 1 else 0)
        logits = step(jnp.asarray(3 * draw.standard_normal(VOCAB), jnp.float32), n, last, before, latest)
        assert np.isfinite(logits).any(), "something may come at every place"
        tokens.append(int(np.argmax(logits)))
        if tokens[-1] == END:
            break
        latest = max(latest, tokens[-1]) if tokens[-1] >= TIME else latest
    return tokens


@pytest.mark.parametrize("seed", range(8))
def test_times_stand_in_pairs_around_words_and_never_fall(seed):
    tokens = written(seed, times=True)
    assert TIME <= tokens[0] <= TIME + MOST_BEFORE_FIRST
    stamps = [token for token in tokens if token >= TIME]
    assert stamps == sorted(stamps)
    for before, one, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if one >= TIME:  # of a pair, or before the end of the text
            assert (before >= TIME) != (after >= TIME) or after == END or (before < TIME and after >= TIME)
    assert not any(NEVER[tokens])


def test_without_times_words_alone_come_and_some_not_first():
    for seed in range(8):
        tokens = written(seed, times=False)
        assert max(tokens) <= END
        assert not FIRST[tokens[0]]


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)


def transcriber(samples: int = 480_000) -> Transcriber:
    found = Transcriber.__new__(Transcriber)
    found._rules, found._tokenizer, found._samples = Rules(END, TIME, True, NEVER, FIRST), Letters(), samples
    return found


def at(seconds: float) -> int:
    return TIME + round(seconds / 0.02)


def test_pairs_of_times_are_segments_and_the_next_window_begins_with_what_was_not_ended():
    tokens = [at(0), 1, 2, at(1), at(1), 3, at(2), at(2), 4]  # the last one has no end
    segments, step = transcriber()._cut(tokens, 30.0)
    assert segments == [(0.0, 1.0, "ab"), (1.0, 2.0, "c")]
    assert step == 2 * 16_000


def test_a_text_that_ends_with_its_time_takes_the_whole_window():
    segments, step = transcriber()._cut([at(0), 1, at(1), at(1.5), 2, at(2)], 30.0)
    assert segments == [(0.0, 1.0, "a"), (1.5, 2.0, "b")]
    assert step == 480_000


def test_one_segment_ends_at_its_time_or_with_the_window():
    assert transcriber()._cut([at(0), 1, at(1.2)], 30.0) == ([(0.0, 1.2, "a")], 480_000)
    assert transcriber()._cut([1, 2], 4.0) == ([(0.0, 4.0, "ab")], 480_000)
    assert transcriber()._cut([], 4.0) == ([], 480_000)


def test_silence_of_any_length_is_no_text_and_asks_no_model():
    found = list(transcriber().segments(np.zeros(1_000_000, np.float32)))
    assert [segments for _, segments in found] == [[], [], []]
    assert found[-1][0] == 62.5
