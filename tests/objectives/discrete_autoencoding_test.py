"""DiscreteAutoencoding: its loss by hand, where its gradient goes, and the use of the codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import DiscreteAutoencoderConfig
from bigmodel_jax.models.base import Out
from bigmodel_jax.models.discrete_autoencoder import Coded
from bigmodel_jax.objectives import Autoencoding, DiscreteAutoencoding

CFG = DiscreteAutoencoderConfig.tiny()
MODEL = CFG.make()
ROWS = np.array([1, 1, 0], np.float32)  # the last row only fills the batch


def coded(ids: list[list[int]]) -> Out:
    return Out(Coded(jnp.full((3, 2, 2, 1), 0.25), jnp.array(ids, jnp.int32)[:, :, None], 4))


def score(objective: DiscreteAutoencoding, out: Out, train: bool = False):
    batch = {"image": jnp.zeros((3, 2, 2, 1)), "weights": ROWS}
    return objective.score(out, batch, params={}, train=train)


def test_the_loss_is_the_error():
    loss = score(DiscreteAutoencoding(error="l2"), coded([[0, 1]] * 3))
    np.testing.assert_allclose(loss.mean.compute(), 0.25**2, rtol=1e-6)


def test_an_evaluation_reports_how_many_codes_are_used_and_how_evenly():
    """Two batches have four counted places each: code 0 has five places, code 1 two, code 3 one,
    code 2 none."""
    sums = None
    for ids in ([[0, 0], [0, 1], [2, 2]], [[0, 0], [3, 1], [2, 2]]):
        found = score(DiscreteAutoencoding(), coded(ids)).metrics
        sums = found if sums is None else {name: sums[name] + m for name, m in found.items()}
    report = DiscreteAutoencoding().summarize(sums)
    shares = np.array([5, 2, 1]) / 8
    assert abs(report["code_perplexity"] - np.exp(-np.sum(shares * np.log(shares)))) < 1e-4
    assert report["codes_used"] == 0.75
    assert {m.name for m in DiscreteAutoencoding.metrics} == set(report)


@pytest.mark.slow
def test_the_encoder_learns_through_the_rounded_codes():
    image = np.random.default_rng(0).random((3, *CFG.image_shape), np.float32)

    def loss(weights):
        batch = {"image": image, "weights": ROWS}
        return DiscreteAutoencoding().loss(MODEL, weights, batch, rng=None, train=True).mean.compute()

    grads = jax.jit(jax.grad(loss))(params.init(MODEL.spec, jax.random.key(0)))
    assert np.any(grads["encoder"]["enter"]["kernel"])


@pytest.mark.slow
def test_an_image_comes_back_from_its_codes():
    """`decode` of `encode`'s numbers gives what training sees, except for the last bits."""
    weights = params.init(MODEL.spec, jax.random.key(1))
    image = np.random.default_rng(1).random((2, *CFG.image_shape), np.float32)
    ids = CFG.encode(weights, image)
    assert ids.shape == (2, *CFG.latent_shape[:2])
    value = MODEL.apply(weights, {"image": image}).value
    np.testing.assert_array_equal(ids, value.ids)
    np.testing.assert_allclose(CFG.decode(weights, ids), value.image, atol=1e-5)


def test_a_model_of_the_other_kind_is_refused_in_one_line():
    batch = {"image": jnp.zeros((3, 2, 2, 1)), "weights": ROWS}
    with pytest.raises(ValueError, match=r"^objective: DiscreteAutoencoding needs a model that gives codes[^\n]*$"):
        DiscreteAutoencoding().score(Out(jnp.zeros((3, 10))), batch, params={}, train=False)
    with pytest.raises(ValueError, match=r"^objective: Autoencoding needs a model that gives a latent's mean[^\n]*$"):
        Autoencoding().score(coded([[0, 1]] * 3), batch, params={}, train=False)


def test_more_codes_than_a_vocabulary_are_refused():
    with pytest.raises(
        ValueError, match=r"^model\.levels = 8 and model\.latent_channels = 16 make 281,474,976,710,656 codes"
    ):
        DiscreteAutoencoderConfig(levels=8, latent_channels=16).validate(ParallelConfig())
