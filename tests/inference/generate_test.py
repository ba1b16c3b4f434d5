"""Generation with a cache is what the full forward pass says, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference import compiled
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE, bucket, left_pad
from bigmodel_jax.inference.sampling import sample
from bigmodel_jax.models import GPT2Config, LlamaConfig, MLPConfig
from bigmodel_jax.nn import stack

GREEDY = SampleConfig(max_tokens=6, temperature=0)
NEVER = ()
PROMPTS = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8]]


# tests/parity decodes GPT-2 as its reference does.
@pytest.fixture(scope="module", params=few([LlamaConfig, GPT2Config], LlamaConfig), ids=["llama", "gpt2"])
def model(request):
    # Large initial values, so that the likeliest token differs from place to place.
    model = dataclasses.replace(request.param.tiny(), init_std=0.5).make()
    return model, params.init(model.spec, jax.random.key(0))


@pytest.fixture(scope="module")
def greedy(model):
    return [generate(*model, [prompt], GREEDY, stop=NEVER)[0] for prompt in PROMPTS]


def test_greedy_is_the_argmax_of_the_full_forward_pass(model, greedy):
    made, weights = model
    apply = jax.jit(made.apply)
    for prompt, continuation in zip(PROMPTS, greedy, strict=True):
        text = [*prompt, *continuation]
        tokens = jnp.array([text + [0] * (32 - len(text))])  # one length, so one program
        logits = apply(weights, {"tokens": tokens}).value[0]
        np.testing.assert_array_equal(jnp.argmax(logits[len(prompt) - 1 : len(text) - 1], -1), continuation)
    assert len({token for row in greedy for token in row}) > 3, "the model says one thing only; the test sees nothing"


@pytest.mark.slow
def test_prompts_of_different_lengths_together_equal_each_alone(model, greedy):
    assert generate(*model, PROMPTS, GREEDY, stop=NEVER) == greedy


@pytest.mark.slow
@pytest.mark.few("llama")
def test_layers_that_lie_apart_say_the_same(model, greedy, monkeypatch):
    _, weights = model
    monkeypatch.setattr(compiled, "APART_FROM", 0)
    seen = []
    monkeypatch.setattr(stack, "apart", lambda *args, apart=stack.apart: seen.append(apart(*args)) or seen[-1])
    assert generate(*model, PROMPTS, GREEDY, stop=NEVER) == greedy
    assert isinstance(seen[-1]["layers"], tuple)
    second = jax.tree.map(lambda x: x[1], weights["layers"])
    jax.tree.map(np.testing.assert_array_equal, seen[-1]["layers"][1], second)


@pytest.mark.few("llama-change0")
@pytest.mark.slow
@pytest.mark.parametrize("change", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_sampling_from_one_token_is_greedy(model, greedy, change):
    cfg = dataclasses.replace(GREEDY, **{"temperature": 1.0} | change)
    assert generate(*model, PROMPTS, cfg, stop=NEVER, seed=3) == greedy


@pytest.mark.slow
@pytest.mark.few("llama")
def test_the_stop_token_ends_a_row_and_is_left_out(model, greedy):
    stop = greedy[0][2]
    ended = [row[: row.index(stop)] if stop in row else row for row in greedy]
    assert generate(*model, PROMPTS, GREEDY, stop=(stop,)) == ended
    assert len(ended[0]) <= 2


@pytest.mark.slow
@pytest.mark.few("llama")
def test_each_of_several_stop_tokens_ends_a_row(model, greedy):
    spoken = {token for row in greedy for token in row}
    unspoken = next(i for i in range(100) if i not in spoken)
    stop = greedy[0][2]
    ended = [row[: row.index(stop)] if stop in row else row for row in greedy]
    for stops in ((unspoken, stop), (stop, unspoken)):
        assert generate(*model, PROMPTS, GREEDY, stop=stops) == ended


@pytest.mark.slow
@pytest.mark.few("llama")
def test_a_seed_repeats_its_text_and_another_gives_another(model):
    cfg = SampleConfig(max_tokens=12, temperature=2.0)
    one, again, other = (generate(*model, PROMPTS, cfg, stop=NEVER, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.slow
@pytest.mark.few("llama")
def test_rows_of_one_prompt_differ_when_sampled(model):
    rows = generate(*model, [PROMPTS[0]] * 4, SampleConfig(max_tokens=12, temperature=2.0), stop=NEVER)
    assert len(set(map(tuple, rows))) > 1


def test_what_cannot_be_generated_is_refused(model):
    for prompts in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="prompt = ''"):
            generate(*model, prompts, GREEDY, stop=NEVER)
    with pytest.raises(ValueError, match="no decode cache"):
        generate(MLPConfig.tiny().make(), {}, [[1]], GREEDY, stop=NEVER)


def test_left_pad_ends_every_prompt_in_the_last_column():
    for prompt in PROMPTS:
        tokens, segments = left_pad(prompt, 64)
        assert tokens.shape[1] % PROMPT_MULTIPLE == 0
        assert tokens[0, -len(prompt) :].tolist() == prompt
        assert segments[0].tolist() == [0] * (tokens.shape[1] - len(prompt)) + [1] * len(prompt)
    assert left_pad(PROMPTS[2], 20)[0].shape == (1, 20), "no longer than a slot"


def test_few_lengths_are_compiled_and_little_is_padded():
    lengths = [bucket(n) for n in range(1, 4097)]
    assert len(set(lengths)) == 28
    assert all(n <= length < max(n + 16, 1.25 * n + 1) for n, length in enumerate(lengths, 1))


# ----------------------------------------------------------------------------------------- one draw

PROBS = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def draws(cfg: SampleConfig, n: int = 20_000) -> np.ndarray:
    """Frequencies of n draws from PROBS."""
    logits = jnp.broadcast_to(jnp.log(PROBS), (n, len(PROBS)))
    return np.bincount(sample(logits, jax.random.split(jax.random.key(0), n), cfg), minlength=len(PROBS)) / n


def kept(*tokens: int) -> np.ndarray:
    """PROBS over these tokens alone."""
    only = np.where(np.isin(np.arange(len(PROBS)), tokens), PROBS, 0)
    return only / only.sum()


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (SampleConfig(temperature=1.0), PROBS),
        (SampleConfig(temperature=1.0, top_k=2), kept(0, 1)),
        (SampleConfig(temperature=1.0, top_k=99), PROBS),
        # 0.4 + 0.3 reach 0.6, not before: the smallest set with at least that probability.
        (SampleConfig(temperature=1.0, top_p=0.6), kept(0, 1)),
        (SampleConfig(temperature=1.0, top_p=0.8), kept(0, 1, 2)),
        (SampleConfig(temperature=1.0, top_p=0.3), kept(0)),
        (SampleConfig(temperature=1.0, top_k=3, top_p=0.9), kept(0, 1, 2)),
        (SampleConfig(temperature=0.5), PROBS**2 / np.sum(PROBS**2)),
        (SampleConfig(temperature=2.0), PROBS**0.5 / np.sum(PROBS**0.5)),
        (SampleConfig(temperature=0), kept(0)),
    ],
    ids=str,
)
def test_draws_follow_the_distribution_that_the_options_leave(cfg, expected):
    found = draws(cfg)
    np.testing.assert_array_equal(found > 0, expected > 0)
    # Five standard deviations of a frequency of 20,000 draws.
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / 20_000**0.5)
