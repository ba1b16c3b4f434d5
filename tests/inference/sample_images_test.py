"""DDIM by its properties: who knows the picture gets it, in any number of steps; guidance is the
difference scaled."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import ImageSampleConfig
from bigmodel_jax.inference.sample_images import sample_images, sampling, schedule
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Diffusion
from bigmodel_jax.objectives.diffusion import kept

ROWS = 5
NOISE = np.random.default_rng(0).standard_normal((ROWS, 4, 4, 1), np.float32)
LABELS = {"label": np.arange(ROWS)}
LEFT = jnp.asarray(kept(Diffusion()), jnp.float32)


def knows(picture_of):
    """A model of data that has one picture (B, 1, 1, 1) per row: `picture_of(batch)`, values of -1
    .. 1."""

    def apply(params, batch, **_):
        a = LEFT[batch["timestep"]][:, None, None, None]
        noise = (batch["image"] - jnp.sqrt(a) * picture_of(batch)) / jnp.sqrt(1 - a)
        return Out(jnp.concatenate([noise, noise + 7], axis=-1))  # further channels are not read

    return Model({}, apply)


def shade(batch):
    return (batch["label"] / 5 - 0.4).astype(jnp.float32)[:, None, None, None]


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_who_knows_the_picture_gets_it(steps):
    cfg = ImageSampleConfig(steps=steps, guidance=1.0)
    made = sample_images(knows(shade), {}, Diffusion(), LABELS, NOISE, cfg)
    np.testing.assert_allclose(made, np.broadcast_to(shade(LABELS) / 2 + 0.5, made.shape), atol=1e-3)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_guidance_goes_from_the_hidden_to_the_told_and_beyond(guidance):
    """The model answers +0.3 with its prompt and -0.1 without. The picture is -0.1 + guidance x
    0.4, because it is linear in the noise."""
    model = knows(lambda batch: jnp.where(batch["hidden"], -0.1, 0.3)[:, None, None, None])
    made = sample_images(model, {}, Diffusion(), LABELS, NOISE, ImageSampleConfig(steps=4, guidance=guidance))
    np.testing.assert_allclose(2 * made - 1, -0.1 + guidance * 0.4, atol=1e-3)


def test_what_is_no_picture_is_cut_off():
    made = sample_images(knows(lambda batch: 9.0), {}, Diffusion(), LABELS, NOISE, ImageSampleConfig(steps=3))
    assert made.max() == 1.0


def test_timesteps_run_from_the_last_to_the_clean_picture():
    timesteps, left, after = schedule(Diffusion(), 4)
    assert timesteps.tolist() == [999, 749, 499, 249]
    np.testing.assert_allclose(left, np.asarray(LEFT)[timesteps], rtol=1e-6)
    assert after[:-1].tolist() == left[1:].tolist()
    assert after[-1] == 1
    for steps in (3, 7, 999, 1000):
        assert len(np.unique(schedule(Diffusion(), steps)[0])) == steps


def test_each_step_is_a_part_and_one_program_serves_every_number_of_steps():
    traced = []
    model = knows(lambda batch: traced.append(1) or shade(batch))
    for steps in (2, 5):
        parts = sampling(model, {}, Diffusion(), LABELS, NOISE, ImageSampleConfig(steps=steps))
        assert len(list(parts)) == steps
    assert len(traced) == 1
