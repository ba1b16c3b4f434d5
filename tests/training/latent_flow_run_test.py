"""An autoencoder is trained, and a flow among its latents, which draws pictures of the image's
size."""

import dataclasses
import json

import numpy as np
import pytest

from bigmodel_jax.config import Config, EvalConfig, ImageSampleConfig, TrainConfig
from bigmodel_jax.data import ImageTextData
from bigmodel_jax.models import AutoencoderConfig, MMDiTTextConfig
from bigmodel_jax.objectives import Autoencoding, LatentFlow
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.run import train

pytestmark = pytest.mark.slow
SIZES = {"channels": (8, 8), "blocks_per_level": 1, "latent_channels": 2, "norm_groups": 4}
VAE = AutoencoderConfig((8, 8, 3), **SIZES)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    config = Config(
        model=VAE,
        objective=Autoencoding(pictures=4),
        data=ImageTextData(image_size=8),
        optim=OptimConfig(warmup_steps=1),
        train=TrainConfig(steps=3, batch_size=16),
        eval=EvalConfig(every=3),
    )
    train(config, folder)
    return folder


def flow_of(folder) -> Config:
    model = MMDiTTextConfig.tiny()
    text = dataclasses.replace(model.text, vocab_size=1024)
    return Config(
        model=dataclasses.replace(model, image_shape=VAE.latent_shape, text=text),
        objective=LatentFlow(autoencoder=str(folder), latent_scale=0.8),
        data=ImageTextData(image_size=8),
        optim=OptimConfig(schedule="constant", warmup_steps=0),
        train=TrainConfig(steps=4, batch_size=16),
        eval=EvalConfig(every=4, images=ImageSampleConfig(num=2, steps=3)),
    )


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.exhaustive  # text_then_image_run_test.py has the page of a discrete one
def test_the_page_of_an_autoencoder_shows_its_reconstructions(autoencoder):
    report = [r for r in records(autoencoder) if "eval/psnr" in r][-1]
    assert report["eval/latent_std"] > 0
    assert (autoencoder / "samples" / "00000003.png").stat().st_size > 1000
    assert "peak signal-to-noise" in (autoencoder / "report.html").read_text().lower()


@pytest.mark.exhaustive
def test_a_flow_among_latents_trains_draws_and_resumes(autoencoder, tmp_path):
    """The run neither trains nor saves the autoencoder's weights. A run in two parts ends as a run
    in one part."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = flow_of(autoencoder)
    train(config, whole)
    assert (whole / "samples" / "00000004.png").stat().st_size > 1000
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), parts)
    train(config, parts)
    losses = [[r["eval/loss"] for r in records(folder) if "eval/loss" in r][-1] for folder in (whole, parts)]
    assert np.isfinite(losses[0])
    assert losses[0] == losses[1]
