"""Log-likelihoods of continuations: those of the model's own logits, however rows are batched, cut
and laid out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData
from bigmodel_jax.harness.scoring import Scorer
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training.state import init_state, weights

MOST = 16  # positions of the model
CONFIG = Config(
    dataclasses.replace(LlamaConfig.tiny(), init_std=0.3, max_seq_len=MOST),
    NextToken(),
    TextData(),
    parallel=ParallelConfig(data=1),
    train=TrainConfig(batch_size=4),
)
RNG = np.random.default_rng(0)
# Contexts and continuations of many lengths; the last two together are longer than the model takes.
PAIRS = [(RNG.integers(1, 60, a).tolist(), RNG.integers(1, 60, b).tolist()) for a, b in
         [(1, 1), (3, 2), (9, 4), (1, 16), (12, 5), (40, 3), (5, 30)]]  # fmt: skip


def by_hand(model, tree, context, continuation):
    whole = [*context, *continuation][-(MOST + 1) :]
    scored = min(len(continuation), len(whole) - 1)
    tokens = np.zeros((1, MOST), np.int32)  # one length, so one program
    tokens[0, : len(whole) - 1] = whole[:-1]
    logits = jax.jit(model.apply)(tree, {"tokens": tokens}).value[0, len(whole) - 1 - scored : len(whole) - 1]
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = whole[-scored:]
    return log_p[np.arange(scored), targets].sum(), bool((logits.argmax(-1) == targets).all())


@pytest.fixture(scope="module")
def state():
    return jax.device_get(weights(init_state(CONFIG, sharding.make_mesh(CONFIG.parallel, jax.devices()[:1]))))


def scorer(state, parallel=CONFIG.parallel):
    config = dataclasses.replace(CONFIG, parallel=parallel)
    num = int(np.prod(parallel.sizes()))
    mesh = sharding.make_mesh(parallel, jax.devices()[:num])
    return Scorer(config, mesh, jax.device_put(state, sharding.placed(config.make_model().spec, mesh, parallel)))


@pytest.mark.slow
def test_each_continuation_is_scored_given_its_context_in_the_order_of_the_pairs(state, caplog):
    found = scorer(state)(PAIRS)
    assert "2 of 7 texts have more than 17 tokens, and lose their start" in caplog.text
    model = CONFIG.make_model()
    for pair, one in zip(PAIRS, found, strict=True):
        log_prob, greedy = by_hand(model, state, *pair)
        assert one.log_prob == pytest.approx(log_prob, abs=1e-4)
        assert one.greedy == greedy


@pytest.mark.slow
def test_the_likeliest_continuation_is_greedy_and_an_empty_one_costs_nothing(state):
    model, text = CONFIG.make_model(), [3, 7]
    for _ in range(4):
        tokens = jnp.array([text + [0] * (MOST - len(text))])  # one length, so one program
        text.append(int(jax.jit(model.apply)(state, {"tokens": tokens}).value[0, len(text) - 1].argmax()))
    best, other, none = scorer(state)([(text[:2], text[2:]), (text[:2], [*text[2:5], (text[5] + 1) % 64]), ([3], [])])
    assert (best.greedy, other.greedy) == (True, False)
    assert none == (0.0, True)


@pytest.mark.slow
def test_a_mesh_changes_nothing(state):
    here = scorer(state)(PAIRS)
    there = scorer(state, ParallelConfig(data=2, fsdp=2, tensor=2))(PAIRS)
    np.testing.assert_allclose([one.log_prob for one in there], [one.log_prob for one in here], atol=1e-4)
