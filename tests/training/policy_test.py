"""Answers that end at once or are cut off: what a reward sees of them, and what a batch asks
for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.data import PromptData, TextData, TokenizerConfig, save_tokenizer
from bigmodel_jax.inference.rollout import Ask, Rollout
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.base import Out
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.objectives.policy_gradient import held_out as of_answers
from bigmodel_jax.training import rewards
from bigmodel_jax.training.held_out import HeldOut
from bigmodel_jax.training.policy import Policy


class Given:
    """A generator that gives these answers, and a judge that counts letters."""

    def __init__(self, rollouts):
        self.rollouts, self.seen = rollouts, []

    def generate(self, weights, asks):
        yield from enumerate(self.rollouts)

    def submit(self, sample):
        self.seen.append(sample.response)
        return lambda: [float(len(sample.response))]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(TextData(tokenizer=TokenizerConfig(kind="bytes")), path)
    data = PromptData(tokenizer_path=str(path), max_prompt=4, max_tokens=3, group=2)
    return Config(LlamaConfig.tiny(), PolicyGradient(reward="rewards.py:letters"), data)


def answered(config, monkeypatch, *rollouts):
    """(rows, responses as the reward sees them, rewards)."""
    given = Given(rollouts)
    monkeypatch.setattr(rewards, "judges", lambda names, seconds: given)
    policy = Policy(config, given)
    answers = policy.answer({}, [Ask([5, 6], {"prompt": "p"}, (0, n)) for n in range(len(rollouts))])
    return policy.rows(answers, config.objective.judging().cut_off), given.seen, policy.totals(answers)


def test_an_answer_that_ends_at_once_is_an_empty_text_and_one_trained_token(config, monkeypatch):
    stop = config.data.open_tokenizer().stops[0]
    rows, seen, totals = answered(config, monkeypatch, Rollout([stop], [-0.5], True), Rollout([98], [-1.0], False))
    assert seen == ["", "a"]
    np.testing.assert_array_equal(totals, [0.0, 1.0])
    np.testing.assert_array_equal(rows["weights"].sum(1), [1, 1])
    assert rows["targets"][0, 1] == stop


@pytest.mark.parametrize(("truncated", "asked"), [("counted", [3, 2]), ("left_out", [0, 2])])
def test_an_answer_that_was_cut_off_counts_or_asks_for_nothing(config, monkeypatch, truncated, asked):
    stop = config.data.open_tokenizer().stops[0]
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, truncated=truncated))
    cut, whole = Rollout([98, 99, 100], [-1.0] * 3, False), Rollout([98, stop], [-1.0] * 2, True)
    rows, seen, totals = answered(config, monkeypatch, cut, whole)
    assert seen == ["abc", "a"]
    np.testing.assert_array_equal(totals, [3.0, 1.0])
    np.testing.assert_array_equal(rows["weights"].sum(1), asked)


def broken(weights, asks):
    raise KeyError("no such room")
    yield


@pytest.mark.parametrize(
    ("rollouts", "says"),
    [
        ([Rollout([98], [-1.0], True)], "1 of 2 prompts got no answer"),
        ([Rollout([98], [-1.0, -1.0], True)], "an answer has 1 tokens, 2 log_probs and 1 entries of own"),
        ([Rollout([98] * 7, [-1.0] * 7, True)], "an answer has 7 tokens, and its row has room for 6"),
        (broken, r"envs\.py:rooms raised KeyError: 'no such room' \(line \d+ of "),
    ],
)
def test_a_generator_that_does_wrong_is_one_line(rollouts, says, config, monkeypatch):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rollouts="envs.py:rooms"))
    given = Given(rollouts)
    monkeypatch.setattr(rewards, "judges", lambda names, seconds: given)
    if callable(rollouts):
        given.generate = rollouts
    with pytest.raises(ValueError, match=f"^data.rollouts: .*{says}") as error:
        Policy(config, given).answer({}, [Ask([5, 6], {"prompt": "p"}, (0, n)) for n in range(2)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut_off", [True, False])
def test_an_evaluation_counts_answers_that_were_cut_off(cut_off, config, monkeypatch):
    """If they were left out, the share of stopped answers would be 1 wherever the loss leaves them
    out."""
    truncated = "counted" if cut_off else "left_out"
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, truncated=truncated))
    given = Given([Rollout([98, 99, 100], [-1.0] * 3, False), Rollout([98], [-1.0], True)])
    monkeypatch.setattr(rewards, "judges", lambda names, seconds: given)
    policy = Policy(config, given)
    answers = policy.answer({}, [Ask([5, 6], {"prompt": "p"}, (0, n)) for n in range(2)])
    held_out = HeldOut.__new__(HeldOut)
    held_out.batch_size, held_out._policy, held_out._place = 2, policy, Whole()
    batch = held_out._batch(answers)
    found = of_answers(batch, batch["weights"])
    assert float(found["stopped"].total / found["stopped"].count) == 0.5
    assert float(found["reward"].total / found["reward"].count) == 2.0


class Whole:
    """A placement that has all rows on one device."""

    low, high = 0, 2

    def __call__(self, rows):
        return rows


@pytest.mark.slow
@pytest.mark.parametrize("form", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo"])
def test_a_batch_that_asks_for_nothing_has_no_loss(form):
    objective = PolicyGradient(form=form, length=4)
    batch = {"targets": jnp.zeros((2, 4), jnp.int32), "weights": jnp.zeros((2, 4)), "advantages": jnp.ones(2)}
    batch["rollout_log_probs"] = jnp.zeros((2, 4))
    score = lambda x: objective.score(Out(x), batch, params={}, train=True).mean.total  # noqa: E731
    total, gradient = jax.value_and_grad(score)(jnp.zeros((2, 4, 8)))
    assert total == 0
    assert not gradient.any()
