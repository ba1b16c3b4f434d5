"""Codes drawn by the engine: which tokens are allowed, and that they are those of whole passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.draw_codes import Below, draw_codes
from bigmodel_jax.inference.sampling import allowed_only
from bigmodel_jax.models import DiscreteAutoencoderConfig, GPT2Config
from bigmodel_jax.objectives import TextThenImage

DVAE = dataclasses.replace(DiscreteAutoencoderConfig.tiny(), image_shape=(4, 4, 3))  # 2 x 2 codes of 16
OBJECTIVE = TextThenImage(autoencoder="run", autoencoder_model=DVAE)
MODEL = GPT2Config(vocab_size=16 + 10, num_layers=1, embed_dim=16, num_heads=2, max_seq_len=7, init_std=1.0).make()


def test_the_codes_alone_are_allowed():
    for num in (16, 32, 40):
        logits = allowed_only(jnp.zeros((1, 50)), jnp.asarray(Below(num).allowed())[None])
        assert np.isfinite(logits[0]).tolist() == [n < num for n in range(50)]


@pytest.mark.slow
def test_drawn_codes_are_the_likeliest_of_a_pass_over_the_whole_sequence():
    weights = params.init(MODEL.spec, jax.random.key(0))
    texts = np.array([[5, 6, 3], [7, 3, 0]], np.int32)
    tokens = jnp.asarray(OBJECTIVE.prompt(texts))
    for _ in range(DVAE.num_tokens):
        logits = MODEL.apply(weights, {"tokens": tokens}).value[:, -1]
        tokens = jnp.concatenate([tokens, jnp.argmax(logits[:, :16], axis=-1)[:, None].astype(jnp.int32)], axis=1)
    drawn = draw_codes(MODEL, weights, OBJECTIVE, texts, SampleConfig(temperature=0.0))
    assert drawn.tolist() == tokens[:, 3:].tolist()
    assert len(np.unique(drawn)) > 1
