"""Which weights go: exactly as many as were asked for, and those that numpy's own definition
names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.compress import prune_masks
from bigmodel_jax.compress.prune_masks import NofM
from bigmodel_jax.core.params import Param, normal

SHAPE = (3, 16, 10)


def weights(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.99])
def test_each_matrix_loses_exactly_the_share_that_was_asked_for_and_the_smallest(sparsity):
    w = weights()
    keep = np.asarray(prune_masks.smallest_out(prune_masks.magnitude(w), sparsity, by_output=False))
    for one, kept in zip(np.abs(np.asarray(w)), keep, strict=True):
        assert (~kept).sum() == round(sparsity * kept.size)
        assert one[~kept].max(initial=0) <= one[kept].min()


def test_equal_weights_lose_exactly_as_many():
    keep = prune_masks.smallest_out(jnp.ones((1, 4, 4)), 0.25, by_output=False)
    assert int((~keep).sum()) == 4


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_wanda_is_the_papers_definition_in_numpy(sparsity):
    w = np.asarray(weights())
    x = np.random.default_rng(1).standard_normal((3, 50, 16)).astype(np.float32)
    squares = np.square(x).sum(1)
    keep = np.asarray(prune_masks.smallest_out(prune_masks.wanda(w, jnp.asarray(squares)), sparsity, by_output=True))
    for m in range(3):
        # Algorithm 1 of arXiv:2306.11695, where W is (outputs, inputs).
        W = w[m].T.copy()
        metric = np.abs(W) * np.linalg.norm(x[m], axis=0)
        order = np.argsort(metric, axis=1, kind="stable")
        np.put_along_axis(W, order[:, : round(sparsity * 16)], 0, axis=1)
        np.testing.assert_array_equal(np.where(keep[m], w[m], 0), W.T)


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 4), NofM(4, 8)])
def test_every_block_of_m_inputs_keeps_its_n_largest(pattern):
    w = np.abs(np.asarray(weights()))
    keep = np.asarray(prune_masks.n_of_m(jnp.asarray(w), pattern))
    blocks = keep.reshape(3, 16 // pattern.m, pattern.m, 10)
    assert (blocks.sum(2) == pattern.n).all()
    sizes = w.reshape(blocks.shape)
    assert (np.where(blocks, sizes, np.inf).min(2) >= np.where(blocks, -np.inf, sizes).max(2)).all()


def test_a_pattern_is_read_or_refused_in_one_line():
    assert prune_masks.parse_pattern("2:4") == NofM(2, 4)
    for text in ("4:2", "2:2", "0:4", "2/4", "two", "2:4:6"):
        with pytest.raises(ValueError, match="it must be N:M with 0 < N < M, such as 2:4"):
            prune_masks.parse_pattern(text)
    with pytest.raises(ValueError, match="a matrix has 6 inputs, which is not a multiple of 4"):
        prune_masks.n_of_m(jnp.ones((1, 6, 2)), NofM(2, 4))


def test_a_parameter_lies_as_inputs_by_outputs_however_its_dimensions_are_written():
    q = Param((2, 8, 3, 4), ("layers", "embed", "heads", "head_dim"), normal(1.0), decay=True)
    o = Param((2, 3, 4, 8), ("layers", "heads", "head_dim", "embed"), normal(1.0), decay=True)
    assert prune_masks.matrices_shape("layers/attn/q", q) == (2, 8, 12)
    assert prune_masks.matrices_shape("layers/attn/o", o) == (2, 12, 8)
    w = jax.random.normal(jax.random.key(0), o.shape)
    np.testing.assert_array_equal(prune_masks.as_matrices("layers/attn/o", o, w)[1], w[1].reshape(12, 8))
    table = Param((64, 8), ("vocab", "embed"), normal(1.0))
    with pytest.raises(ValueError, match="--targets leaves it out"):
        prune_masks.matrices_shape("embed/table", table)
