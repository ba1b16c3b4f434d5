"""A conformer's rows of unequal lengths: a padded frame changes nothing. Its parity:
tests/parity/parakeet_test.py."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.conformer import PRESETS, ConformerConfig, subsampled
from bigmodel_jax.objectives import CTC

LENGTHS = (40, 25, 7, 1)


def made(**fields):
    cfg = dataclasses.replace(ConformerConfig.tiny(), **fields)
    model = cfg.make()
    return cfg, model, jax.jit(lambda key: params.init(model.spec, key))(jax.random.key(0))


def batch(seed=0):
    frames = np.random.default_rng(seed).standard_normal((len(LENGTHS), 40, 16)).astype(np.float32)
    labels = np.array([[2, 3, 1, 4], [5, 6, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]], np.int32)
    return {
        "log_mel": frames,
        "num_frames": np.array(LENGTHS, np.int32),
        "labels": labels,
        "num_labels": np.array([4, 2, 0, 1], np.int32),
        "weights": np.ones(len(LENGTHS), np.float32),
    }


def with_padding(of, value):
    frames = of["log_mel"].copy()
    for row, length in enumerate(LENGTHS):
        frames[row, length:] = value
    return of | {"log_mel": frames}


@pytest.mark.parametrize("norm", ["batch", pytest.param("layer", marks=pytest.mark.exhaustive)])
def test_padded_frames_change_no_logits_no_gradient_and_no_statistic(norm):
    _, model, tree = made(conv_norm=norm)
    trainable, frozen = params.partition(tree, model.spec)

    @jax.jit
    def step(tree, batch):
        def of(tree):
            found = CTC().loss(model, params.merge(tree, frozen), batch, rng=None, train=True)
            return found.mean.total, (model.apply(params.merge(tree, frozen), batch).value, found.updates)

        return jax.value_and_grad(of, has_aux=True)(tree)

    (loss, (value, updates)), grads = step(trainable, with_padding(batch(), 0.0))
    (other, (other_value, other_updates)), other_grads = step(trainable, with_padding(batch(), 1e3))
    assert float(loss) == float(other)
    assert bool(updates) == (norm == "batch")
    jax.tree.map(np.testing.assert_array_equal, (updates, grads), (other_updates, other_grads))
    for row, length in enumerate(np.asarray(value["num_frames"])):
        np.testing.assert_array_equal(value["logits"][row, :length], other_value["logits"][row, :length])


def test_a_row_alone_gives_what_it_gives_among_longer_ones():
    cfg, model, tree = made()
    apply, whole = jax.jit(model.apply), batch()
    among = apply(tree, whole).value
    for row, length in enumerate(LENGTHS):
        alone = apply(
            tree, {"log_mel": whole["log_mel"][row : row + 1, :length], "num_frames": np.array([length], np.int32)}
        ).value
        frames = subsampled(cfg, length)
        assert alone["logits"].shape[1] == frames == int(among["num_frames"][row])
        np.testing.assert_allclose(alone["logits"][0], among["logits"][row, :frames], atol=1e-5)


def test_dropout_needs_a_key_and_training():
    _, model, tree = made(dropout=0.5)
    apply = jax.jit(model.apply, static_argnames="train")
    one, two = (apply(tree, batch(), rng=jax.random.key(n), train=True).value["logits"] for n in (0, 1))
    assert np.abs(one - two).max() > 0.01
    still, again = (apply(tree, batch(), rng=jax.random.key(n), train=False).value["logits"] for n in (0, 1))
    np.testing.assert_array_equal(still, again)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_width": 4}, "model.conv_width = 4; it must be odd"),
        ({"num_mels": 18}, "model.subsampling = 4 does not divide model.num_mels = 18"),
        ({"num_heads": 5}, "model.num_heads = 5 does not divide model.embed_dim = 32"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ConformerConfig.tiny(), **fields).validate(ParallelConfig())


def test_batch_norm_in_a_pipeline_is_refused():
    with pytest.raises(ValueError, match="model.conv_norm = 'batch' with parallel.stage = 2: .* 'layer' has none"):
        ConformerConfig.tiny().validate(ParallelConfig(stage=2))


def test_the_published_size():
    """The number is the one that transformers' ParakeetForCTC of the same config.json has."""
    assert params.count(PRESETS["parakeet-ctc-0.6b"].make().spec, trainable=True) == 608_799_745
