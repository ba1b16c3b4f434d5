"""The original Transformer: published sizes and initial values, positions, dropout, and what its
config refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import TransformerConfig
from bigmodel_jax.models.transformer import PRESETS
from bigmodel_jax.nn.position import sinusoids


def size(name: str) -> int:
    return params.count(PRESETS[name].make().spec)


@pytest.mark.parametrize(("name", "millions"), [("transformer-base", 65), ("transformer-big", 213)])
def test_the_papers_presets_have_its_sizes(name, millions):
    """The sizes are those of Table 3. The paper rounds them, and says "about 37000" for its
    vocabulary."""
    assert abs(size(name) / (millions * 1e6) - 1) < 0.03


def test_opus_mt_has_the_published_size():
    """transformers counts 74,410,496 parameters: it includes two tables of sinusoids and leaves out
    the bias of the logits, a buffer."""
    assert size("opus-mt-en-de") == 74_410_496 - 2 * 512 * 512 + 58_101


@pytest.mark.exhaustive
def test_initial_values_are_the_reference_s():
    """transformers' PreTrainedModel._init_weights for Marian draws from normal(init_std). Biases
    start at zero and norms at one."""
    cfg = dataclasses.replace(TransformerConfig.tiny(), vocab_size=256, embed_dim=64, logits_bias=True)
    tree = params.paths(jax.jit(functools.partial(params.init, cfg.make().spec))(jax.random.key(0)))
    for path, x in tree.items():
        if path.endswith("scale"):
            assert (x == 1).all(), path
        elif path.endswith("bias"):
            assert (x == 0).all(), path
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


def test_a_shift_turns_every_pair_of_a_positions_vector():
    """Section 3.5 claims that PE(pos + k) is a linear function of PE(pos) for any fixed k."""
    table = sinusoids(50, 16).astype(np.float64)
    np.testing.assert_allclose(table[:, :8] ** 2 + table[:, 8:] ** 2, 1.0, atol=1e-6)
    complex_table = table[:, 8:] + 1j * table[:, :8]
    np.testing.assert_allclose(complex_table[7:], complex_table[:-7] * complex_table[7], atol=1e-6)
    np.testing.assert_allclose(table[1, [0, 7]], np.sin([1.0, 10_000 ** (-14 / 16)]), rtol=1e-6)


def test_dropout_needs_a_key_and_training():
    cfg = dataclasses.replace(TransformerConfig.tiny(), dropout=0.5)
    model = cfg.make()
    tree = params.init(model.spec, jax.random.key(0))
    batch = {"encoder_tokens": jnp.arange(8)[None], "tokens": jnp.arange(5)[None]}
    apply = jax.jit(lambda rng: model.apply(tree, batch, rng=rng, train=True).value)
    plain = TransformerConfig.tiny().make().apply(tree, batch).value
    np.testing.assert_allclose(model.apply(tree, batch, rng=jax.random.key(1)).value, plain)
    first, second = apply(jax.random.key(1)), apply(jax.random.key(2))
    assert abs(first - plain).max() > 0.01 < abs(first - second).max()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"embed_dim": 33, "num_heads": 3}, "model.embed_dim = 33; it must be a multiple of 2"),
        ({"num_heads": 5}, "model.num_heads = 5 does not divide model.embed_dim = 32"),
        ({"decoder_start_token_id": -1}, "model.decoder_start_token_id = -1; it must be 0 or more"),
    ],
)
def test_impossible_configs_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TransformerConfig.tiny(), **change).validate(ParallelConfig())
