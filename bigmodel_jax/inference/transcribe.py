"""Transcribes recordings of any length with Whisper: greedy windows of 30 s, with or without times.

The rules are those of OpenAI's `whisper/decoding.py` and `transcribe.py` (arXiv:2212.04356, section
4.5): which tokens may come next, where the next window begins, and which windows have no speech.
Two rules differ: a window does not get the text before it, and no window is decoded again at a
higher temperature.

Shapes: V vocab, P start tokens, L tokens of a window's text, M frames, F bins.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.data.audio import transcript_start as starts
from bigmodel_jax.data.audio import windows
from bigmodel_jax.data.audio.spectrogram import RATE
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

MOST_BEFORE_FIRST = 50  # time tokens: speech must begin in the first second of its window
# A window is silent if p(no speech) is above the first, and the mean log-probability below the
# second.
SILENT_PROB, SILENT_LOG_PROB = 0.6, -1.0
NEVER = -jnp.inf


class Segment(NamedTuple):
    """A text and the times at which it starts and ends, in seconds."""

    start: float
    end: float
    text: str


class Rules(NamedTuple):
    """The tokens that may come next.

    - end, time: ids of the end token and of the first time token
    - times: whether time tokens are used
    - never, first: masks (V,) of tokens that may not come at all, or not first
    """

    end: int
    time: int
    times: bool
    never: np.ndarray
    first: np.ndarray


class Said(NamedTuple):
    """A window's text: the first `num` of tokens (L,), their summed log-probability, and p(no
    speech)."""

    tokens: jax.Array
    num: jax.Array
    log_prob: jax.Array
    silent: jax.Array


def rules_of(tokenizer: Tokenizer, vocab: int, *, times: bool) -> Rules:
    """The rules of a tokenizer and of the tokens that its generation_config.json suppresses."""
    kept, names = tokenizer.special.generation, tokenizer.control
    never, first = (np.zeros(vocab, bool) for _ in range(2))
    end = names.get(starts.END, tokenizer.separator)
    never[[i for i in kept.get("suppress_tokens") or () if 0 <= i < vocab]] = True
    # The end token is the only control token that may be written.
    never[[i for name, i in names.items() if i != end and i < vocab]] = True
    time = 1 + names[starts.NO_TIMES] if starts.NO_TIMES in names else vocab
    never[time:] = not times
    first[[i for i in kept.get("begin_suppress_tokens") or () if 0 <= i < vocab]] = True
    return Rules(end, time, times, never, first)


def allowed(rules: Rules, logits_V: jax.Array, n, last, before, latest) -> jax.Array:
    """Logits with -inf for tokens that must not be token number `n`.

    last, before: the two tokens before it. latest: the largest time token so far; 0 if there is
    none.
    """
    ids = jnp.arange(logits_V.shape[0])
    logits_V = jnp.where(rules.never | (rules.first & (n == 0)), NEVER, logits_V)
    if not rules.times:
        return logits_V
    is_time = ids >= rules.time
    # After a time that ends a text, another time or the end must follow. After two times in a row,
    # or after the first token, text must follow.
    after, pair = (n >= 1) & (last >= rules.time), (n < 2) | (before >= rules.time)
    no_time, no_text = after & pair, after & ~pair
    least = jnp.where(latest == 0, 0, jnp.where(no_text, latest, latest + 1))
    early = is_time & (ids < least)
    late = (n == 0) & (ids > rules.time + MOST_BEFORE_FIRST)
    wrong = (no_time & is_time) | (no_text & (ids < rules.end)) | early | late | ((n == 0) & ~is_time)
    logits_V = jnp.where(wrong, NEVER, logits_V)
    # If times together are likelier than any single word, a time must come.
    log_probs = jax.nn.log_softmax(logits_V)
    times = jax.nn.logsumexp(jnp.where(is_time, log_probs, NEVER))
    words = jnp.max(jnp.where(is_time, NEVER, log_probs))
    return jnp.where((times > words) & ~is_time, NEVER, logits_V)


def window_program(model: Any, rules: Rules, start: list[int], most: int, silent: int | None) -> Callable:
    """A jitted (weights, log_mel (1, M, F)) -> Said: encodes once, then writes up to `most` tokens.

    silent: the token for "no speech"; None if the vocabulary has none.
    """
    begin, num_start = jnp.asarray([start], jnp.int32), len(start)

    def run(weights: params.Tree, log_mel: jax.Array) -> Said:
        cache = params.empty(model.make_cache(1, num_start + most, log_mel.dtype))
        out = model.apply(weights, {"log_mel": log_mel, "tokens": begin}, cache=cache)
        probs = jax.nn.softmax(out.value[0, 0])
        quiet = probs[silent] if silent is not None else jnp.zeros(())

        def going(state):
            n, tokens, *_ = state
            return (n < most) & ((n == 0) | (tokens[jnp.maximum(n - 1, 0)] != rules.end))

        def write(state):
            n, tokens, logits, cache, latest, total = state
            # For n < 2 these two are not yet written, and `allowed` ignores them.
            last, before = tokens[n - 1], tokens[n - 2]
            logits = allowed(rules, logits, n, last, before, latest)
            token = jnp.argmax(logits).astype(jnp.int32)
            total = total + jax.nn.log_softmax(logits)[token]
            latest = jnp.where((token >= rules.time) & rules.times, token, latest)
            ones = jnp.ones((1, 1), jnp.int32)
            batch = {"tokens": token * ones, "positions": (num_start + n) * ones, "segment_ids": ones}
            out = model.apply(weights, batch, cache=cache)
            return n + 1, tokens.at[n].set(token), out.value[0, -1], out.cache, latest, total

        tokens, zero = jnp.full(most, rules.end, jnp.int32), jnp.zeros((), jnp.int32)
        state = (zero, tokens, out.value[0, -1], out.cache, zero, jnp.zeros(()))
        n, tokens, _, _, _, total = jax.lax.while_loop(going, write, state)
        return Said(tokens, n, total, quiet)

    return jax.jit(run)


class Transcriber:
    """Transcribes samples window by window.

    tokenizer, cfg: the run's tokenizer and sampling settings. language, task: as in
    `transcript_start.start`. times: split windows at time tokens, which also place the next window.
    Otherwise each window is one segment.
    """

    def __init__(
        self,
        cfg: Any,
        model: Any,
        weights: params.Tree,
        tokenizer: Tokenizer,
        *,
        language="",
        task="transcribe",
        times=True,
    ):
        times = times and starts.NO_TIMES in tokenizer.control
        self._rules = rules_of(tokenizer, cfg.vocab_size, times=times)
        start = starts.start(tokenizer, language, task, times=times)
        silent = next((tokenizer.control[name] for name in starts.SILENT if name in tokenizer.control), None)
        self._frames, self._mels = 2 * cfg.max_audio_len, cfg.num_mels
        self._samples = self._frames * windows.HOP
        self._run = window_program(model, self._rules, start, cfg.max_seq_len // 2, silent)
        self._weights, self._tokenizer = weights, tokenizer

    def segments(self, samples_N: np.ndarray) -> Iterator[tuple[float, list[Segment]]]:
        """(seconds read so far, new segments) for each window. Digital silence has no segments."""
        seek = 0
        while seek < len(samples_N):
            window = samples_N[seek : seek + self._samples]
            found, step = self._window(window)
            shift = seek / RATE
            seek += step
            yield min(seek, len(samples_N)) / RATE, [Segment(a + shift, b + shift, text) for a, b, text in found]

    def _window(self, samples: np.ndarray) -> tuple[list[Segment], int]:
        """(segments in seconds from the window's start, samples to the next window)."""
        if not samples.any():
            return [], self._samples
        mel = windows.log_mel(samples, self._mels, self._frames)[None]
        said = jax.device_get(self._run(self._weights, mel))
        tokens = said.tokens[: said.num].tolist()
        # OpenAI's average counts the end token, too.
        mean = float(said.log_prob) / (len(tokens) + 1)
        if said.silent > SILENT_PROB and mean < SILENT_LOG_PROB:
            return [], self._samples
        return self._cut([t for t in tokens if t != self._rules.end], len(samples) / RATE)

    def _cut(self, tokens: list[int], seconds: float) -> tuple[list[Segment], int]:
        """Splits a window's tokens into segments, each between two times.

        If the text ends within a segment, the next window begins at that segment's start.
        """
        time = self._rules.time
        is_time = [token >= time for token in tokens]
        ends = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
        ended = is_time[-2:] == [False, True]
        if not ends:
            stamps = [t for t in tokens if t >= time]
            last = (stamps[-1] - time) * starts.TIME if stamps and stamps[-1] != time else seconds
            return self._made([tokens], [(0.0, last)]), self._samples
        ends += [len(tokens)] if ended else []
        parts = [tokens[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        spans = [((part[0] - time) * starts.TIME, (part[-1] - time) * starts.TIME) for part in parts]
        # After an end time of 0 the same window would be read for ever, so the next window follows.
        return self._made(parts, spans), self._samples if ended else round(spans[-1][1] * RATE) or self._samples

    def _made(self, parts: list[list[int]], spans: list[tuple[float, float]]) -> list[Segment]:
        texts = [self._tokenizer.decode([t for t in part if t < self._rules.time]).strip() for part in parts]
        return [Segment(a, b, text) for (a, b), text in zip(spans, texts, strict=True) if text]
