"""XLNet: published sizes, initial distributions, and what each stream may see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import XLNetConfig, xlnet
from bigmodel_jax.models.xlnet import PRESETS

# transformers counts XLNetLMHeadModel so, with its tied head once. The paper's models have BERT's
# sizes.
PUBLISHED = {"xlnet-base-cased": 116_750_336, "xlnet-large-cased": 360_300_800}
TINY = dataclasses.replace(XLNetConfig.tiny(), init_std=0.2)
# By numpy: JAX would compile, in every process that collects tests. Tests add 1, so 63 is left out.
TOKENS = jnp.asarray(np.random.default_rng(1).integers(1, 63, (1, 8), np.int32))
# Tokens 6, 1 and 4 are predicted, in this order; the others are given.
ORDER = jnp.asarray(np.int32([[0, 2, 0, 0, 3, 0, 1, 0]]))
PLACES = jnp.asarray(np.int32([[1, 4, 6]]))


@pytest.mark.parametrize("name", PRESETS)
def test_published_counts(name):
    assert params.count(PRESETS[name].make().spec) == PUBLISHED[name]


def test_initial_distributions():
    """transformers' _init_weights draws from normal(0.02), also the attention's biases. Other
    biases start at zero and norms at one."""
    cfg = XLNetConfig(vocab_size=1000, num_layers=2, embed_dim=128, num_heads=4, mlp_dim=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith(("scale", "/bias")):
            assert (x == path.endswith("scale")).all(), path
        else:
            assert float(x.std()) == pytest.approx(0.02, rel=5 / (2 * x.size) ** 0.5), path


def value(tokens=TOKENS, **batch):
    model = TINY.make()
    return model.apply(params.init(model.spec, jax.random.key(0)), {"tokens": tokens} | batch).value


def test_a_token_is_predicted_from_those_before_it_in_the_order():
    """The test changes one token and reads which predictions notice it."""
    before = {1: {6}, 4: {6, 1}, 6: set()}
    first = value(order=ORDER, places=PLACES)
    for changed in range(8):
        other = value(TOKENS.at[0, changed].add(1), order=ORDER, places=PLACES)
        for n, place in enumerate((1, 4, 6)):
            seen = changed in before[place] or changed not in before
            assert bool(jnp.abs(first[0, n] - other[0, n]).max() > 1e-6) == seen, (changed, place)


def test_without_an_order_all_see_all():
    for place in (0, 7):
        assert (jnp.abs(value() - value(TOKENS.at[0, place].add(1))).max(-1) > 1e-6).all()


def test_padding_is_not_seen():
    segments = jnp.array([[1] * 6 + [0] * 2])
    other = value(TOKENS.at[:, 6:].set(5), segment_ids=segments)
    np.testing.assert_array_equal(value(segment_ids=segments)[:, :6], other[:, :6])


def test_packed_documents_are_as_they_are_alone():
    """Each document has its own order, and both streams are compared."""
    packed = {
        "segment_ids": jnp.array([[1] * 3 + [2] * 5]),
        "positions": jnp.array([[*range(3), *range(5)]]),
        "order": ORDER,
        "places": PLACES,
    }
    alone = value(TOKENS[:, 3:], order=ORDER[:, 3:], places=PLACES[:, 1:] - 3)
    np.testing.assert_allclose(value(**packed)[:, 1:], alone, atol=1e-5)


def test_distances_are_sines_and_cosines():
    table = xlnet.distances(5, 6)
    assert table.shape == (9, 6)
    np.testing.assert_allclose(table[4], [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(table[5, 1], np.sin(10_000 ** (-2 / 6)), rtol=1e-6)
    np.testing.assert_allclose(table[:4, :3], -table[:-5:-1, :3], rtol=1e-6)


def test_odd_widths_are_named():
    with pytest.raises(ValueError, match=r"model\.embed_dim = 33"):
        dataclasses.replace(TINY, embed_dim=33, num_heads=3).validate(ParallelConfig())
