"""T5: published sizes and initial values, buckets of distances, dropout, and what its config
refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import T5Config
from bigmodel_jax.models.t5 import PRESETS, bucket_of_distance, relative_bias

# The sum of the published checkpoints' tensors, each tied one once.
PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
}


def test_presets_have_the_published_sizes():
    assert {name: params.count(cfg.make().spec) for name, cfg in PRESETS.items()} == PUBLISHED


@pytest.mark.exhaustive
@pytest.mark.parametrize("gated", [False, True])
def test_initial_values_are_the_published_ones(gated):
    """The distributions are those of transformers' T5PreTrainedModel._init_weights with factor 1,
    which follows Mesh TensorFlow."""
    cfg = T5Config(
        vocab_size=256, embed_dim=64, num_heads=4, head_dim=32, mlp_dim=192, gated=gated, tied_embeddings=not gated
    )
    tree = params.paths(jax.jit(functools.partial(params.init, cfg.make().spec))(jax.random.key(0)))
    stds = {"embed/table": 1.0, "head/table": 1.0, "relative_bias": 64**-0.5}
    stds |= {"q": (64 * 32) ** -0.5, "k": 64**-0.5, "v": 64**-0.5, "o": (4 * 32) ** -0.5}
    stds |= {"gate": 64**-0.5, "up": 64**-0.5, "up/kernel": 64**-0.5, "down": 192**-0.5, "down/kernel": 192**-0.5}
    for path, x in tree.items():
        if path.endswith("scale"):
            assert (x == 1).all(), path
            continue
        std = next(std for name, std in stds.items() if path == name or path.endswith(f"/{name}"))
        assert abs(x.mean()) < 4 * std / x.size**0.5, path
        assert abs(x.std() / std - 1) < 4 / (2 * x.size) ** 0.5, path


def test_buckets_are_exact_near_and_logarithmic_far():
    """One direction has 32 published buckets: 16 hold one distance each, and the others reach to
    distance 128."""
    buckets = bucket_of_distance(32, 128)
    assert buckets[:17].tolist() == list(range(17))
    assert buckets[-1] == 31
    ends = np.flatnonzero(np.diff(buckets))[16:]  # the last distance of each wide bucket
    assert ends.tolist() == [18, 20, 23, 26, 30, 34, 39, 45, 51, 58, 66, 76, 86, 98, 112]


def test_the_decoder_sees_no_difference_between_what_lies_ahead():
    """A causal bias knows only distances back; the encoder's bias tells tokens before from tokens
    after."""
    cfg = T5Config.tiny()
    table, slots = jnp.arange(cfg.num_buckets)[:, None] * jnp.ones(cfg.num_heads), jnp.arange(6)
    causal = relative_bias(cfg, table, slots, slots, bidirectional=False)[0, 0]
    both = relative_bias(cfg, table, slots, slots, bidirectional=True)[0, 0]
    assert (np.triu(causal) == 0).all()
    assert (np.diag(causal, -2) == 2).all()
    assert (both[0, 1:] >= cfg.num_buckets // 2).all()
    assert (both[1:, 0] < cfg.num_buckets // 2).all()


def test_dropout_needs_a_key_and_training():
    cfg = dataclasses.replace(T5Config.tiny(), dropout=0.5)
    model = cfg.make()
    tree = params.init(model.spec, jax.random.key(0))
    batch = {"encoder_tokens": jnp.arange(8)[None], "tokens": jnp.arange(5)[None]}
    apply = jax.jit(lambda rng: model.apply(tree, batch, rng=rng, train=True).value)
    plain = T5Config.tiny().make().apply(tree, batch).value
    np.testing.assert_allclose(model.apply(tree, batch, rng=jax.random.key(1)).value, plain)
    first, second = apply(jax.random.key(1)), apply(jax.random.key(2))
    assert abs(first - plain).max() > 0.01 < abs(first - second).max()
    np.testing.assert_array_equal(first, apply(jax.random.key(1)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_decoder_layers": 0}, "model.num_decoder_layers = 0; it must be 1 or more"),
        ({"num_buckets": 6}, "model.num_buckets = 6; it must be a multiple of 4"),
        ({"max_distance": 4}, "model.max_distance = 4; it must be above model.num_buckets / 2 = 4"),
        ({"eos_token_id": 64}, "model.eos_token_id = 64; it must be below model.vocab_size = 64"),
        ({"dropout": 1.0}, "model.dropout = 1.0; it must be 0 or more and below 1"),
        ({"num_heads": 3}, "model.num_heads = 3 is not divisible by parallel.tensor = 2"),
    ],
)
def test_impossible_configs_are_named(change, says):
    with pytest.raises(ValueError, match=says.replace("/", ".")):
        dataclasses.replace(T5Config.tiny(), **change).validate(ParallelConfig(tensor=2))


def test_data_without_an_encoders_tokens_is_named():
    model = T5Config.tiny().make()
    tree = params.abstract(model.spec)
    with pytest.raises(ValueError, match="batch has tokens, but no encoder_tokens"):
        jax.eval_shape(model.apply, tree, {"tokens": jnp.ones((1, 4), jnp.int32)})
