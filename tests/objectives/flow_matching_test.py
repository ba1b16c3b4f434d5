"""Rectified flow: what the loss asks for, how times are drawn, and samplers against a flow that is
known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.data import ImageData
from bigmodel_jax.models import DiTConfig
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import FlowMatching
from bigmodel_jax.objectives.flow_matching import draw_sigma, euler, heun, shifted, sigmas, spans


def batch_of(n=64):
    image = np.random.default_rng(0).random((n, 4, 4, 1), np.float32)
    return {"image": jnp.asarray(image), "weights": jnp.ones(n)}


def loss_of(answer, cfg=None):
    model = Model({}, lambda params, batch, **_: Out(answer(batch)))
    cfg = cfg or FlowMatching()
    return float(cfg.loss(model, {}, batch_of(), rng=jax.random.key(3), train=True).mean.compute())


def test_who_knows_the_image_finds_the_velocity():
    """x = (1 - s) image + s noise implies noise - image = (x - image) / s."""

    def oracle(noisy):
        share = (noisy["timestep"] / 1000)[:, None, None, None]
        return (noisy["image"] - (2 * batch_of()["image"] - 1)) / share

    assert loss_of(oracle) < 1e-6
    # Variance 1 of the noise and 1/3 of images that are uniform in -1 .. 1.
    assert loss_of(lambda noisy: 0 * noisy["image"]) == pytest.approx(4 / 3, abs=0.15)


def test_further_channels_are_not_read():
    wide = loss_of(lambda b: jnp.concatenate([0 * b["image"], 100 + b["image"]], axis=-1))
    assert wide == pytest.approx(loss_of(lambda b: 0 * b["image"]), rel=1e-6)


def test_times_are_logit_normal_or_alike_and_shifted():
    draw = functools.partial(draw_sigma, rng=jax.random.key(0), num=20_000)
    found = draw(FlowMatching(time_mean=0.5, time_std=2.0))
    logits = jnp.log(found / (1 - found))
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(logits.std()) == pytest.approx(2.0, abs=0.05)
    alike = draw(FlowMatching(time_sampling="uniform"))
    assert np.histogram(alike, 4, (0, 1))[0] / 20_000 == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(draw(FlowMatching(time_sampling="uniform", shift=3.0)), shifted(alike, 3.0), rtol=1e-6)


def test_the_schedule_runs_from_noise_to_the_image():
    np.testing.assert_allclose(sigmas(FlowMatching(), 4), [1, 0.75, 0.5, 0.25, 0])
    # Equation 23 of arXiv:2403.03206 with alpha = 3.
    np.testing.assert_allclose(sigmas(FlowMatching(shift=3.0), 4), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)


MEAN, SPREAD = 0.7, 0.3


def exact_velocity(x, timestep):
    """The mean of noise - image given x, where images are normal with MEAN and SPREAD: the
    regression of two normals."""
    s = timestep / 1000
    variance = (1 - s) ** 2 * SPREAD**2 + s**2
    slope = (s - (1 - s) * SPREAD**2) / variance
    return -MEAN + slope * (x - (1 - s) * MEAN)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_samplers_converge_to_the_exact_flow_by_their_order(sampler, order):
    """The flow between normals carries noise z to MEAN + SPREAD z."""
    noise = np.random.default_rng(1).standard_normal((16, 2, 2, 1))
    errors = []
    for steps in (16, 32, 64):
        with jax.enable_x64(True):
            made = jnp.asarray(noise, jnp.float64)
            for at in zip(*spans(FlowMatching(), steps), strict=True):
                made = sampler(exact_velocity, FlowMatching(), made, at)
        errors.append(np.abs(made - (MEAN + SPREAD * noise)).max())
    observed = np.log2(np.array(errors[:-1]) / errors[1:])
    assert observed == pytest.approx(order, abs=0.25), errors


def test_images_that_are_normalised_are_refused():
    config = Config(DiTConfig.tiny(), FlowMatching(), ImageData(normalise="train"))
    with pytest.raises(ValueError, match=r"data\.normalise = 'train': FlowMatching shifts and scales images itself"):
        config.objective.validate(config)
