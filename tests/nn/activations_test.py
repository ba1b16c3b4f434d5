"""Activations by name, against their formulas, and as fields of models."""

import dataclasses
import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import (
    BagOfEmbeddingsConfig,
    CNNConfig,
    MLPConfig,
    RNNClassifierConfig,
    RNNConfig,
    TransformerConfig,
    ViTConfig,
)
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation

X = np.linspace(-4, 4, 33)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "gelu": lambda x: x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / 2**0.5)))(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
}


def test_the_table_the_choices_and_the_formulas_are_the_same_names():
    assert set(ACTIVATIONS) == set(get_args(Activation)) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X, jnp.float32)), FORMULAS[name](X), rtol=1e-5, atol=1e-6)


def image(*shape):
    """Numbers from -1 to 1, by numpy: JAX would compile, in every process that collects tests."""
    return {"image": jnp.asarray(np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape))}


TOKENS = {"tokens": jnp.asarray(np.arange(24, dtype=np.int32).reshape(3, 8))}
MODELS = {
    "mlp": (MLPConfig.tiny(), image(3, 8, 8, 1)),
    "cnn": (CNNConfig.tiny(), image(3, 8, 8, 1)),
    "cnn in linen": (dataclasses.replace(CNNConfig.tiny(), door="linen"), image(3, 8, 8, 1)),
    "bag": (BagOfEmbeddingsConfig(vocab_size=64, embed_dim=16, hidden_dim=24, bigram_buckets=32), TOKENS),
    "rnn": (dataclasses.replace(RNNConfig.tiny(), cell="rnn"), TOKENS),
    "lstm": (RNNConfig.tiny(), TOKENS),
    "gru": (RNNClassifierConfig.tiny(), TOKENS),
    "transformer": (TransformerConfig.tiny(), TOKENS | {"encoder_tokens": TOKENS["tokens"]}),
    "vit": (ViTConfig.tiny(), image(2, 8, 8, 3)),
}


@pytest.mark.few("mlp", "lstm")
@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_the_field_is_what_a_model_computes_with(kind):
    config, batch = MODELS[kind]
    if kind == "vit":
        batch = {"image": jnp.resize(batch["image"], (2, *config.image_shape))}
    outs = {}
    for name in (config.activation, "mish"):
        model = dataclasses.replace(config, activation=name).make()
        draw = model.init or functools.partial(params.init, model.spec)
        outs[name] = np.asarray(model.apply(draw(jax.random.key(0)), batch).value)
    one, other = outs.values()
    assert np.isfinite(one).all()
    assert np.isfinite(other).all()
    assert (one != other).any()
