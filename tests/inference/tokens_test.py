"""Generated tokens of a model that is a table: each has a key of its own, and each of several stop
tokens stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core.params import Param, zeros
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.inference.prompts import left_pad
from bigmodel_jax.inference.sampling import likeliest
from bigmodel_jax.models.base import Model, Out

VOCAB = 4096


def counting(scale: float) -> Model:
    """A model that says token + 1 (scale above 0) or anything (scale 0), and counts in its cache
    what it has read."""

    def apply(params, batch, *, cache=None, **_):
        logits = scale * jax.nn.one_hot(batch["tokens"] + 1, VOCAB)
        # A token whose position is not that of its place says 0.
        right = batch["positions"] == jnp.maximum(jnp.cumsum(batch["segment_ids"], axis=1) - 1 + cache, 0)
        logits = jnp.where(right[..., None], logits, scale * jax.nn.one_hot(jnp.zeros_like(batch["tokens"]), VOCAB))
        return Out(logits, cache=cache + batch["segment_ids"].sum(1, keepdims=True))

    return Model({}, apply, make_cache=lambda rows, length, dtype: Param((rows, 1), ("batch", None), zeros(), "int32"))


PARAMS = {"unused": np.zeros(1, np.float32)}


def say(prompts, *, scale, stop=(), seed=0, tokens=12, temperature=0.0):
    cfg = SampleConfig(max_tokens=tokens, temperature=temperature)
    return generate(counting(scale), PARAMS, prompts, cfg, stop=stop, seed=seed)


@pytest.mark.slow
def test_every_token_of_every_row_is_drawn_anew():
    """If two tokens shared one key, both would be the same one of 4,096."""
    rows = say([[1]] * 3, scale=0.0, temperature=1.0)
    drawn = [token for row in rows for token in row]
    assert len(drawn) == 36
    assert len(set(drawn)) >= 35
    other = [token for row in say([[1]] * 3, scale=0.0, temperature=1.0, seed=1) for token in row]
    assert len(set(drawn) & set(other)) <= 2


@pytest.mark.few("stop0", "stop4")
@pytest.mark.parametrize("stop", [(7, 9), (9, 7), (7,), (9,), ()])
def test_each_of_several_stop_tokens_ends_a_row_where_it_comes(stop):
    """Rows begin at 3, 7 and 20. The first reaches 7, the second 9, and the third neither."""
    whole = [list(range(n + 1, n + 13)) for n in (3, 7, 20)]
    want = [row[: min([row.index(s) for s in stop if s in row], default=12)] for row in whole]
    assert say([[3], [7], [20]], scale=1.0, stop=stop) == want


@pytest.mark.slow
@pytest.mark.parametrize("stop", [(7, 9), (9, 7)])
def test_nothing_is_computed_once_every_row_has_stopped(stop):
    """The rows reach 7 after three tokens and 9 after one. The loop runs three of forty turns, and
    one before it knows."""
    model, calls = counting(1.0), []

    def apply(*args, **options):
        jax.debug.callback(lambda: calls.append(1))
        return model.apply(*args, **options)

    cfg = SampleConfig(max_tokens=40, temperature=0.0)
    rows = generate(model._replace(apply=apply), PARAMS, [[4], [8]], cfg, stop=stop)
    jax.effects_barrier()
    assert rows == [[5, 6], []]
    assert len(calls) <= 5


def test_a_row_that_has_stopped_says_no_more_while_others_go_on():
    short, long = say([[5], [100]], scale=1.0, stop=(7, 105), tokens=8)
    assert short == [6]
    assert long == [101, 102, 103, 104]


def test_prompts_of_unequal_length_count_on_from_their_own_end():
    assert say([[4], [50, 51, 52, 60]], scale=1.0, tokens=3) == [[5, 6, 7], [61, 62, 63]]
    tokens, segments = left_pad([1, 2], 16)
    assert tokens[:, -3:].tolist() == [[0, 1, 2]]
    assert segments[:, -3:].tolist() == [[0, 1, 1]]


def test_the_likeliest_is_the_first_of_equals_and_always_a_token():
    inf, nan = np.inf, np.nan
    logits = jnp.array([[0.0, 2.0, 2.0], [-inf, -inf, -inf], [inf, 1.0, inf], [nan, nan, nan], [-1.0, -2.0, -0.5]])
    assert likeliest(logits).tolist() == [1, 0, 0, 2, 2]
    assert likeliest(logits.astype(jnp.bfloat16)).dtype == jnp.int32
