"""Recurrent models: initial values, published sizes, dropout that is one mask per row, state that
padding leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import rnn
from bigmodel_jax.models.rnn import CELLS, PRESETS, RNNClassifierConfig, RNNConfig

B, T, V = 3, 9, 64
TOKENS = jnp.asarray(np.int32(np.random.default_rng(0).integers(0, V, (B, T))))

every_cell = pytest.mark.parametrize("cell", CELLS)


def make(**changes):
    cfg = dataclasses.replace(RNNConfig.tiny(), **changes)
    model = cfg.make()
    return cfg, model, params.init(model.spec, jax.random.key(0))


@pytest.mark.exhaustive
@every_cell
def test_initial_distributions_are_flaxs(cell):
    cfg = RNNConfig(cell=cell, vocab_size=500, num_layers=1, embed_dim=100, hidden_dim=200)
    p = params.paths(params.init(cfg.make().spec, jax.random.key(0)))
    x = jnp.zeros((1, 100))
    theirs = CELLS[cell](200).init(jax.random.key(1), rnn.initial(cell, 1, 200, jnp.float32), x)["params"]
    theirs = {f"layer0/{path}": v for path, v in params.paths(theirs).items()}
    assert set(theirs) == {path for path in p if path.startswith("layer0/")}
    for path, value in theirs.items():
        if path.endswith("bias"):
            assert not p[path].any()
        elif path.startswith("layer0/h"):
            np.testing.assert_allclose(p[path] @ p[path].T, np.eye(200), atol=1e-5)
        else:
            assert abs(p[path].mean()) < 0.003
            assert p[path].std() == pytest.approx(100**-0.5, rel=0.02)
            assert value.std() == pytest.approx(100**-0.5, rel=0.02)
    assert p["embed/table"].std() == pytest.approx(100**-0.5, rel=0.02)
    assert p["head/table"].std() == pytest.approx(200**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "count", "published"), [("ptb-medium", 19_775_200, 20e6), ("ptb-large", 66_022_000, 66e6)]
)
def test_presets_have_the_published_sizes(name, count, published):
    """Zaremba et al. count two biases where this model has one."""
    assert params.count(PRESETS[name].make().spec) == count == pytest.approx(published, rel=0.02)


@pytest.mark.few("lstm")
@every_cell
def test_a_row_sees_only_what_stands_before(cell):
    _, model, p = make(cell=cell)
    changed = TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % V)
    before, after = (model.apply(p, {"tokens": t}).value for t in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(axis=(0, 2)).all()


# ---- dropout ----


def outputs(cfg, p, rng, tokens=TOKENS):
    return rnn.run(cfg, p, {"tokens": tokens}, rng, None)[0]


def test_a_mask_is_the_same_at_every_step_and_another_in_every_row():
    cfg, _, p = make(dropout=0.5, num_layers=1)
    dropped = np.asarray(outputs(cfg, p, jax.random.key(1)) == 0)
    assert (dropped == dropped[:, :1]).all()
    assert len(np.unique(dropped[:, 0], axis=0)) == B
    assert 0.2 < dropped.mean() < 0.8


def test_a_dropped_word_is_dropped_wherever_it_stands_in_its_row():
    tokens = jnp.tile(jnp.arange(20, dtype=jnp.int32), (B, 2))
    x = rnn.drop_words(jax.random.key(0), 0.4, jnp.ones((B, 40, 5)), tokens, V)
    np.testing.assert_array_equal(x[:, :20], x[:, 20:])
    assert set(np.unique(x)) == {0.0, np.float32(1 / 0.6)}
    assert (x[0] != x[1]).any()
    assert (x == x[:, :, :1]).all(), "the word as a whole"
    assert 0.2 < float((x == 0).mean()) < 0.6


@every_cell
def test_the_state_is_masked_in_products_with_weights_and_nowhere_else(cell):
    """The masked cell equals a cell whose recurrent kernels have zero rows where the mask has
    zeros."""
    cfg, _, p = make(cell=cell, num_layers=1)
    p, mask = p["layer0"], jnp.asarray(np.random.default_rng(1).permutation([0.0] * 8 + [1.5] * 16), jnp.float32)
    x = jax.random.normal(jax.random.key(2), (B, T, 16))
    rows = params.from_paths(
        {k: v * mask[:, None] if k.startswith("h") and v.ndim == 2 else v for k, v in params.paths(p).items()}
    )
    start = rnn.initial(cell, B, 24, jnp.float32)
    edge = (jnp.zeros((B, T), bool), jnp.ones((B, T), bool))
    ours = rnn.layer(cfg, p, x, start, *edge, jnp.tile(mask, (B, 1)))[1]
    np.testing.assert_allclose(ours, rnn.layer(cfg, rows, x, start, *edge, 1.0)[1], atol=1e-6)
    assert np.abs(ours - rnn.layer(cfg, p, x, start, *edge, 1.0)[1]).max() > 0.01


@pytest.mark.few("dropout-rnn", "recurrent_dropout-gru", "embedding_dropout-lstm")
@every_cell
@pytest.mark.parametrize("kind", ["dropout", "recurrent_dropout", "embedding_dropout"])
def test_every_dropout_acts_in_training_alone(cell, kind):
    _, plain, p = make(cell=cell)
    _, model, _ = make(cell=cell, **{kind: 0.3})
    batch = {"tokens": TOKENS}
    evaluated = plain.apply(p, batch).value
    np.testing.assert_array_equal(model.apply(p, batch, rng=jax.random.key(0)).value, evaluated)
    draws = [model.apply(p, batch, rng=jax.random.key(k), train=True).value for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-3
    assert np.abs(draws[0] - evaluated).max() > 1e-3


# ---- classifier ----


@pytest.mark.few("lstm")
@every_cell
def test_padding_changes_nothing(cell):
    cfg = dataclasses.replace(RNNClassifierConfig.tiny(), cell=cell)
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(0))
    plain = model.apply(p, {"tokens": TOKENS}).value
    assert plain.shape == (B, 2)
    for left, right in ((0, 4), (3, 0), (2, 2)):
        tokens = jnp.pad(TOKENS, ((0, 0), (left, right)), constant_values=7)
        real = jnp.pad(jnp.ones((B, T), jnp.int32), ((0, 0), (left, right)))
        np.testing.assert_allclose(model.apply(p, {"tokens": tokens, "segment_ids": real}).value, plain, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 0}, r"model\.hidden_dim = 0; it must be 1 or more"),
        ({"recurrent_dropout": 1.0}, r"model\.recurrent_dropout = 1\.0; it must be 0 or more and below 1"),
        ({"vocab_size": 63}, r"model\.vocab_size = 63 is not divisible by parallel\.tensor = 2"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RNNConfig.tiny(), **changes).validate(ParallelConfig(tensor=2))
    with pytest.raises(ValueError, match=r"model\.num_classes = 1; it must be 2 or more"):
        RNNClassifierConfig(num_classes=1).validate(ParallelConfig())
