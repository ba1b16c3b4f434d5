"""Autoencoding: its terms by hand, what an evaluation reports, and rectified flow among latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.models import AutoencoderConfig, MMDiTConfig
from bigmodel_jax.models.autoencoder import Autoencoded
from bigmodel_jax.models.base import Out
from bigmodel_jax.objectives import Autoencoding, LatentFlow
from bigmodel_jax.objectives.autoencoding import divergence_of

VAE = AutoencoderConfig.tiny()
SHAPE = (3, *VAE.image_shape)


def images(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def out_of(image: np.ndarray, mean: float, log_variance: float) -> Out:
    latent = np.zeros((len(image), *VAE.latent_shape), np.float32)
    return Out(Autoencoded(jnp.asarray(image), jnp.asarray(latent + mean), jnp.asarray(latent + log_variance)))


def test_the_divergence_is_that_of_two_normal_distributions():
    """KL(N(m, v) || N(0, 1)) = (m² + v - 1 - log v) / 2 for each value of the latent."""
    values = np.prod(VAE.latent_shape)
    of_one = (0.5**2 + np.exp(-1.0) - 1 + 1.0) / 2
    found = divergence_of(jnp.full((2, *VAE.latent_shape), 0.5), jnp.full((2, *VAE.latent_shape), -1.0))
    np.testing.assert_allclose(found, [values * of_one] * 2, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "of_a_tenth"), [("l1", 0.2), ("l2", 0.04)])
def test_the_loss_is_error_and_weighted_divergence_per_value(error, of_a_tenth):
    """Every pixel is off by 0.1 of 0 .. 1, which is 0.2 of what the model sees; a row without
    weight is left out."""
    objective, image = Autoencoding(error=error, kl_weight=0.5), images(0) * 0.8
    batch, _ = objective.inputs({"image": image, "weights": np.array([1, 1, 0], np.float32)}, None)
    wrong = np.array(batch["image"]) + np.array([0.2, 0.2, 9], np.float32)[:, None, None, None]
    loss = objective.score(out_of(wrong, 1.0, 0.0), batch, params={}, train=False)
    divergence = np.prod(VAE.latent_shape) / 2
    expected = of_a_tenth + 0.5 * divergence / image[0].size
    np.testing.assert_allclose(loss.mean.compute(), expected, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["psnr"].compute(), 20.0, rtol=1e-4)


def test_an_evaluation_reports_the_spread_of_drawn_latents():
    """A mean of 2 in one row and -2 in the other, each with variance 5: the values' variance is 4 +
    5."""
    objective, sums = Autoencoding(), None
    for mean in (2.0, -2.0):
        batch = {"image": images(1), "weights": np.ones(3, np.float32)}
        found = objective.score(out_of(batch["image"], mean, np.log(5)), batch, params={}, train=False).metrics
        sums = found if sums is None else {name: sums[name] + x for name, x in found.items()}
    report = objective.summarize({name: Mean(float(m.total), float(m.count)) for name, m in sums.items()})
    assert abs(report["latent_std"] - 3.0) < 1e-4
    assert abs(report["latent_mean"]) < 1e-6
    assert {m.name for m in objective.metrics} <= set(report)


def test_a_model_without_latents_is_refused_in_one_line():
    batch = {"image": images(0), "weights": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"needs a model that gives a latent's mean and log variance.*autoencoder"):
        Autoencoding().score(Out(jnp.zeros((3, 10))), batch, params={}, train=False)


# Rectified flow among latents.

FLOW = LatentFlow(autoencoder="run", autoencoder_model=VAE, latent_scale=0.5, latent_offset=0.25)
MODEL = dataclasses.replace(MMDiTConfig.tiny(), image_shape=VAE.latent_shape)


@pytest.mark.slow
def test_the_autoencoder_is_a_constant_and_its_latents_are_what_the_flow_sees():
    spec = FLOW.parameters(MODEL)
    assert {p.kind for p in params.paths(spec).values()} == {"constant"}
    weights = params.init(VAE.make().spec, jax.random.key(0))
    image = images(2)
    latent = FLOW.encoded(weights, image, None)
    mean, _ = VAE.encode(weights, (image - 0.5) * 2)
    np.testing.assert_allclose(latent, mean, rtol=1e-6)
    np.testing.assert_allclose(FLOW.moved(latent), (mean - 0.25) * 0.5, rtol=1e-5, atol=1e-6)
    again = FLOW.pictures({"autoencoder": weights}, FLOW.moved(latent))
    expected = np.clip(np.asarray(VAE.decode(weights, mean)) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(again, expected, atol=1e-5)


@pytest.mark.slow
def test_drawn_latents_have_the_encoders_spread():
    weights = params.init(VAE.make().spec, jax.random.key(0))
    image = images(3)
    mean, log_variance = VAE.encode(weights, (image - 0.5) * 2)
    drawn = jnp.stack([FLOW.encoded(weights, image, jax.random.key(n)) for n in range(200)])
    spread = np.std(np.asarray(drawn), axis=0)
    np.testing.assert_allclose(np.mean(spread / np.exp(np.asarray(log_variance) / 2)), 1.0, atol=0.05)
    np.testing.assert_allclose(np.mean(np.asarray(drawn).mean(0) - mean), 0.0, atol=0.1)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (LatentFlow(), r"objective\.autoencoder = '': give the folder of a run"),
        (LatentFlow(autoencoder="nowhere"), r"objective\.autoencoder = 'nowhere' is not a run's folder"),
        (
            LatentFlow(autoencoder="x", autoencoder_model=MODEL),
            r"objective\.autoencoder = 'x' is a run of MMDiTConfig, ",
        ),
    ],
)
def test_a_run_without_latents_is_refused_in_one_line(objective, message):
    with pytest.raises(ValueError, match=message):
        objective.parameters(MODEL)


def test_a_model_of_another_shape_than_the_latents_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"model\.image_shape = \(8, 8, 1\): the latents of .* have the shape \(4, 4, 2\)"
    ):
        FLOW.parameters(MMDiTConfig.tiny())
