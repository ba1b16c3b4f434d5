"""What falls in a model of every kind, on a model so small that every run of the suite can hold
it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import MODELS, gpt_oss

LENGTH = 8


def model_of(name: str, **changes):
    """(apply, parameters) with initial values so large that every token matters."""
    cfg = dataclasses.replace(MODELS[name].tiny(), init_std=0.3, **changes)
    model = cfg.make()
    return model.apply, params.init(model.spec, jax.random.key(0))


def seen(name: str, **changes) -> list[str]:
    """For each place of a row, the tokens that its logits depend on, found by a gradient."""
    apply, p = model_of(name, **changes)
    tokens = jnp.arange(LENGTH)[None]  # all different: a token's row of the table is that place's input alone

    def energies(table):
        # Only logits of tokens that are not in the row: with tied tables the others' rows would be
        # read there too.
        value = apply(p | {"embed": p["embed"] | {"table": table}}, {"tokens": tokens}).value
        return jnp.sum(jnp.square(value[0, :, 40:]), axis=-1)

    slopes = jax.jit(jax.jacrev(energies))(p["embed"]["table"])[:, :LENGTH]
    return ["".join("#" if x else "." for x in row) for row in np.abs(slopes).sum(-1) > 0]


def band(width: int) -> list[str]:
    return ["".join("#" if t - width < s <= t else "." for s in range(LENGTH)) for t in range(LENGTH)]


WINDOWS = {
    "mistral, one layer": ("mistral", {"num_layers": 1, "window": 3}, 3),
    "mistral, two layers": ("mistral", {"num_layers": 2, "window": 3}, 5),
    "mistral without a window": ("mistral", {"num_layers": 1, "window": 0}, LENGTH),
    "gemma 2, a local layer": ("gemma2", {"num_layers": 1, "window": 3}, 3),
    "gemma 2, the second is global": ("gemma2", {"num_layers": 2, "window": 2}, LENGTH),
    "gemma 3, every third is global": ("gemma3", {"num_layers": 2, "window": 2, "global_every": 3}, 3),
    "gpt-oss, the first is local": ("gpt_oss", {"num_layers": 1, "window": 3}, 3),
}


@pytest.mark.few("gemma 2, a local layer", "gpt-oss, the first is local")
@pytest.mark.slow
@pytest.mark.parametrize("case", WINDOWS)
def test_a_window_reaches_as_far_as_it_says(case):
    name, changes, width = WINDOWS[case]
    assert seen(name, **changes) == band(width)


def logits(name: str, change=lambda flat: {}, **changes):
    apply, p = model_of(name, **changes)
    flat = params.paths(p)
    return jax.jit(apply)(params.from_paths(flat | change(flat)), {"tokens": jnp.arange(LENGTH)[None]}).value


def scaled(*names: str, by: float, plus: float = 0.0):
    return lambda flat: {path: x * by + plus for path, x in flat.items() if path.endswith(names)}


@pytest.mark.few("gemma3")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_norms_of_queries_and_keys_turn_with_their_offset(name):
    """A query's norm leaves only the scale as its size: 1 + 0 in Gemma, 1 in Qwen. So doubled
    queries change nothing."""
    want = logits(name)
    np.testing.assert_allclose(logits(name, scaled("attn/q", "attn/k", by=2.0)), want, rtol=2e-3, atol=2e-3)
    offset = 1.0 if name == "gemma3" else 0.0
    # A scale that is nothing in all: every logit of attention is 0, whatever the queries are.
    flat = logits(name, scaled("q_norm/scale", by=0.0, plus=-offset))
    other = logits(name, lambda f: scaled("q_norm/scale", by=0.0, plus=-offset)(f) | scaled("attn/q", by=-3.0)(f))
    np.testing.assert_allclose(flat, other, atol=1e-5)
    assert np.abs(flat - want).max() > 1e-2


@pytest.mark.slow
def test_gemmas_norms_are_one_plus_their_scale():
    """Scales start at 0. At -1 the last norm lets nothing pass, so all logits are 0."""
    for name in ("gemma", "gemma2", "gemma3"):
        assert np.abs(logits(name)).max() > 0.1
        assert not np.any(logits(name, lambda flat: {"norm/scale": flat["norm/scale"] - 1.0}))


def test_the_clamped_gate_of_gpt_oss():
    """The layer is gate sigmoid(alpha gate) (up + 1). The gate is clamped above, and the linear
    part on both sides."""
    gate, up = np.array([-9.0, -1.0, 2.0, 9.0]), np.array([0.5, -9.0, 9.0, -1.0])
    got = gpt_oss.clamped_swiglu(jnp.asarray(gate), jnp.asarray(up), alpha=1.5, limit=3.0)
    cut, linear = [-9.0, -1.0, 2.0, 3.0], [0.5, -3.0, 3.0, -1.0]
    want = [g / (1 + np.exp(-1.5 * g)) * (u + 1) for g, u in zip(cut, linear, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert (
        gpt_oss.is_local(dataclasses.replace(gpt_oss.GptOssConfig.tiny(), num_layers=4)).tolist() == [True, False] * 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "deepseek"])
def test_padding_has_no_part_in_what_balances_experts(name):
    """Other tokens in the padding change neither losses nor the new biases. Other tokens in the
    text change both."""
    cfg = dataclasses.replace(MODELS[name].tiny(), init_std=0.3)
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(0))
    segments = np.array([[1] * 5 + [0] * 3, [1] * 2 + [0] * 6], np.int32)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)

    @jax.jit
    def balance(tokens):
        batch = {"tokens": tokens, "segment_ids": segments, "targets": tokens, "weights": (segments > 0) * 1.0}
        out = model.apply(p, batch, rng=jax.random.key(1), train=True)
        return out.losses, out.updates

    first = balance(tokens)
    assert jax.tree.leaves(first)
    jax.tree.map(np.testing.assert_array_equal, balance(np.where(segments > 0, tokens, 30)), first)
    other = balance(np.where(segments > 0, tokens + 20, tokens))
    assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (other, first)), strict=True))


DROPOUT = {
    "gpt2": {"dropout": 0.5},
    "bert": {"dropout": 0.5},
    "t5": {"dropout": 0.5},
    "transformer": {"dropout": 0.5},
    "xlnet": {"dropout": 0.5},
    "mlp": {"dropout": 0.5},
    "bag_of_embeddings": {"dropout": 0.5, "word_dropout": 0.5},
}


@pytest.mark.few("t5", "mlp")
@pytest.mark.slow
@pytest.mark.parametrize("name", DROPOUT)
def test_no_two_dropouts_of_a_model_share_a_key(name, monkeypatch):
    cfg = MODELS[name].tiny()
    cfg = dataclasses.replace(cfg, **{k: v for k, v in DROPOUT[name].items() if hasattr(cfg, k)})
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH) % 40
    ones = np.ones_like(tokens)
    batch = {"tokens": tokens, "segment_ids": ones, "positions": tokens % LENGTH, "encoder_tokens": tokens}
    batch |= {
        "encoder_segment_ids": ones,
        "token_types": 0 * ones,
        "order": tokens % 5,
        "places": tokens[:, :3] % LENGTH,
    }
    if hasattr(cfg, "image_shape"):
        batch["image"] = np.ones((2, *cfg.image_shape), np.float32)
    keys, bernoulli = [], jax.random.bernoulli

    def record(key, *args, **kwargs):
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return bernoulli(key, *args, **kwargs)

    monkeypatch.setattr(jax.random, "bernoulli", record)
    with jax.disable_jit():
        model.apply(p, batch, rng=jax.random.key(7), train=True)
    assert len(keys) > 1
    assert len(set(keys)) == len(keys)
    keys.clear()
    model.apply(p, batch)
    assert keys == [], "an evaluation drops nothing"
