"""The noise schedule against its definition, step by step, and what the loss asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.data import ImageData
from bigmodel_jax.models import DiTConfig
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Diffusion
from bigmodel_jax.objectives.diffusion import add_noise, kept


def test_schedule_is_the_papers():
    """Section 4 has beta from 1e-4 to 0.02, so nearly nothing of the image is left at the end."""
    left = kept(Diffusion())
    assert len(left) == 1000
    assert left[0] == pytest.approx(1 - 1e-4)
    assert 1 - left[1] / left[0] == pytest.approx(1e-4 + (0.02 - 1e-4) / 999)
    assert left[-1] == pytest.approx(4.04e-5, rel=0.01)


def test_noise_in_one_step_is_that_of_many():
    """The variance equals that of t steps of x <- sqrt(1 - beta) x + sqrt(beta) noise."""
    cfg = Diffusion()
    signal, variance = 1.0, 0.0
    for beta in np.linspace(cfg.beta_start, cfg.beta_end, cfg.num_steps)[:201]:
        signal, variance = signal * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    t, one = jnp.array([200]), jnp.ones((1, 1, 1, 1))
    assert float(add_noise(cfg, one, 0 * one, t)[0, 0, 0, 0]) == pytest.approx(signal, rel=1e-5)
    assert float(add_noise(cfg, 0 * one, one, t)[0, 0, 0, 0]) == pytest.approx(variance**0.5, rel=1e-5)


def batch_of(n=64):
    image = np.random.default_rng(0).random((n, 4, 4, 1), np.float32)
    return {"image": jnp.asarray(image), "weights": jnp.ones(n)}


def run(answer, batch, rng=None, train=False):
    model = Model({}, lambda params, batch, **_: Out(answer(batch)))
    return Diffusion().loss(model, {}, batch, rng=rng, train=train).mean.compute()


def test_who_knows_the_image_finds_the_noise():
    batch, cfg = batch_of(), Diffusion()
    left = jnp.asarray(kept(cfg), jnp.float32)

    def oracle(noisy):
        a = left[noisy["timestep"]][:, None, None, None]
        return (noisy["image"] - jnp.sqrt(a) * (2 * batch["image"] - 1)) / jnp.sqrt(1 - a)

    assert float(run(oracle, batch, jax.random.key(3), True)) < 1e-4


def test_who_answers_zero_has_the_noise_itself_as_error():
    assert float(run(lambda b: 0 * b["image"], batch_of(), jax.random.key(0), True)) == pytest.approx(1, abs=0.1)


def test_timestep_noise_and_model_have_keys_of_their_own(monkeypatch):
    keys = []

    def recorded(draw):
        def call(key, *args, **kwargs):
            keys.append(key)
            return draw(key, *args, **kwargs)

        return call

    for name in ("randint", "normal"):
        monkeypatch.setattr(jax.random, name, recorded(getattr(jax.random, name)))
    model = Model({}, lambda params, batch, *, rng, **_: keys.append(rng) or Out(batch["image"]))
    Diffusion().loss(model, {}, batch_of(), rng=jax.random.key(0), train=True)
    assert len(keys) == 3
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 3


def test_further_channels_are_not_read():
    def answer(noisy):
        return jnp.concatenate([0 * noisy["image"], 100 + noisy["image"]], axis=-1)

    assert float(run(answer, batch_of())) == pytest.approx(float(run(lambda b: 0 * b["image"], batch_of())), rel=1e-6)


def test_training_draws_anew_and_evaluation_does_not():
    def answer(noisy):
        return 0 * noisy["image"]

    losses = {float(run(answer, batch_of(), jax.random.key(n), True)) for n in range(3)}
    assert len(losses) == 3
    assert float(run(answer, batch_of())) == float(run(answer, batch_of()))


def test_rows_without_weight_do_not_count():
    batch = batch_of()
    batch["weights"] = batch["weights"].at[32:].set(0)

    def answer(noisy):
        return jnp.where(jnp.arange(64)[:, None, None, None] < 32, 0.0, 1e3) * jnp.ones_like(noisy["image"])

    assert float(run(answer, batch)) == pytest.approx(1, abs=0.2)


def test_evaluation_also_hides_what_the_model_is_told():
    """The model answers right only where it is told something, so an evaluation that hides it has a
    loss."""
    batch, cfg = batch_of(), Diffusion()
    left = jnp.asarray(kept(cfg), jnp.float32)

    def answer(noisy):
        a = left[noisy["timestep"]][:, None, None, None]
        right = (noisy["image"] - jnp.sqrt(a) * (2 * batch["image"] - 1)) / jnp.sqrt(1 - a)
        return jnp.where(noisy.get("hidden", jnp.zeros(64, bool))[:, None, None, None], 0.0, right)

    model = Model({}, lambda params, batch, **_: Out(answer(batch)))
    sums = Diffusion().loss(model, {}, batch, rng=None, train=False).metrics
    assert float(sums["loss"].compute()) < 1e-4
    assert float(sums["unconditional_loss"].compute()) == pytest.approx(1, abs=0.1)
    assert set(sums) == {m.name for m in Diffusion().metrics}
    assert set(Diffusion().loss(model, {}, batch, rng=jax.random.key(0), train=True).metrics) == {"loss"}


def test_images_that_are_normalised_are_refused():
    config = Config(DiTConfig.tiny(), Diffusion(), ImageData(normalise="train"))
    with pytest.raises(
        ValueError, match=r"data\.normalise = 'train': Diffusion shifts and scales images itself .* allowed: 'none'"
    ):
        config.objective.validate(config)
