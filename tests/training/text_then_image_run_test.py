"""A discrete autoencoder and a CLIP are trained, and a decoder that writes codes after names."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.data import ImageTextData
from bigmodel_jax.models import DiscreteAutoencoderConfig, GPT2Config
from bigmodel_jax.models.clip import CLIPConfig, TextTower, VisionTower
from bigmodel_jax.objectives import Contrastive, DiscreteAutoencoding, TextThenImage
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.serve.config import ServeConfig
from bigmodel_jax.serve.served import open_served
from bigmodel_jax.training import reference
from bigmodel_jax.training.drawing_ending import best, check_judge, drawn, names_to_draw, open_judge
from bigmodel_jax.training.run import train
from bigmodel_jax.training.saved import generate_from_run, load_weights
from runs import killed

pytestmark = pytest.mark.slow
DATA = ImageTextData(image_size=8, seq_len=8)
DVAE = DiscreteAutoencoderConfig((8, 8, 3), (8, 8), blocks_per_level=1, latent_channels=2, norm_groups=4, levels=4)
TOWER = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32}
CLIP = CLIPConfig(
    vision=VisionTower(image_shape=(8, 8, 3), patch_size=4, **TOWER),
    text=TextTower(vocab_size=1024, max_seq_len=8, **TOWER),
    projection_dim=8,
    eos_token_id=3,
)
SHORT = {"data": DATA, "optim": OptimConfig(schedule="constant", warmup_steps=0), "eval": EvalConfig(every=3)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run of three steps of an autoencoder, of a CLIP and of a decoder."""
    folder = tmp_path_factory.mktemp("runs")
    short = SHORT | {"train": TrainConfig(steps=3, batch_size=16)}
    train(Config(model=DVAE, objective=DiscreteAutoencoding(pictures=4), **short), folder / "dvae")
    train(Config(model=CLIP, objective=Contrastive(), **short), folder / "clip")
    train(config_of(folder), folder / "dalle")
    return folder


def config_of(folder, **changes) -> Config:
    places = {"autoencoder": str(folder / "dvae"), "judge": str(folder / "clip")}
    return Config(
        model=GPT2Config(vocab_size=16 + 1024, num_layers=2, embed_dim=32, num_heads=4, max_seq_len=8 + 16),
        objective=TextThenImage(**(places | {"pictures": 2, "candidates": 3} | changes)),
        train=TrainConfig(steps=4, batch_size=16),
        checkpoint=CheckpointConfig(every=2),
        **SHORT,
    )


def opened(config: Config, folder):
    mesh = sharding.make_mesh(config.parallel)
    return load_weights(config, folder, mesh)[0], mesh


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_pages_show_reconstructions_and_drawn_names(runs):
    for name, step, metric in (("dvae", 3, "Perplexity of the codes"), ("dalle", 4, "Loss of the codes")):
        assert (runs / name / "samples" / f"{step:08d}.png").stat().st_size > 1000
        assert metric.lower() in (runs / name / "report.html").read_text().lower()
    report = [r for r in records(runs / "dvae") if "eval/psnr" in r][-1]
    assert 1 < report["eval/code_perplexity"] <= 16
    assert 0 < report["eval/codes_used"] <= 1


def test_a_run_in_two_parts_ends_as_one_and_refers_to_the_autoencoder(runs, tmp_path):
    config = config_of(runs)
    train(config, killed(runs / "dalle", 4, tmp_path / "parts"))
    whole, parts = (opened(config, folder)[0] for folder in (runs / "dalle", tmp_path / "parts"))
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(x, y)
    found = json.loads((runs / "dalle" / "constants.json").read_text())
    assert str(runs / "dvae") in json.dumps(found)
    assert not (runs / "dalle" / "constants").exists(), "no weights of the autoencoder are copied"


def test_the_codes_are_those_of_the_images_and_are_made_once(runs, tmp_path, monkeypatch):
    config = config_of(runs)
    weights, mesh = opened(config, runs / "dalle")
    monkeypatch.setattr(reference, "_compute", lambda *_: pytest.fail("the codes are in the cache"))
    beside = reference.find(config, mesh, tmp_path, resumes=False).data
    batch = beside.open("validation").batch(np.arange(20), None)
    # Another program may round to another of two codes that are equally near.
    assert np.mean(batch["codes"] == config.objective.compute(None, weights, batch)) > 0.99
    assert len(np.unique(batch["codes"])) > 1


def test_drawn_images_depend_on_the_seed_and_are_scored_by_the_judge(runs):
    config = config_of(runs)
    weights, _ = opened(config, runs / "dalle")
    told, titles = names_to_draw(config)
    assert [title.startswith("new: ") for title in titles] == [False, False, True, True]
    images, scores = drawn(config, weights, told, seed=1)
    assert images.shape == (4, 3, 8, 8, 3)
    assert len(np.unique(images.reshape(12, -1), axis=0)) > 6, "candidates differ"
    again, ranked = drawn(config, weights, told, seed=1)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(scores, ranked)
    other, _ = drawn(config, weights, told, seed=2)
    assert np.any(images != other)
    judge, judges = open_judge(config.objective.judge)
    batch = {"image": images[:, 1]} | told
    of_image, of_text = np.asarray(judge.make_model().apply(judges, batch).value, np.float64).swapaxes(0, 1)
    cosines = (of_image * of_text).sum(1) / np.linalg.norm(of_image, axis=1) / np.linalg.norm(of_text, axis=1)
    np.testing.assert_allclose(scores[:, 1], cosines, atol=1e-5)


def test_the_candidate_of_the_highest_score_is_shown():
    images = np.arange(6.0).reshape(2, 3, 1, 1, 1)
    assert best(images, np.array([[0.1, 0.9, 0.3], [-0.1, -0.9, -0.3]])).ravel().tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"judge": "runs/nowhere"}, r"objective\.judge = 'runs/nowhere' is not a run's folder; "),
        (
            lambda c: {"judge": c.objective.autoencoder},
            r"objective\.judge = '.*' is a run of Discrete.*, which is no CLIP; ",
        ),
    ],
)
def test_a_judge_that_cannot_rank_is_refused_before_the_first_step(runs, tmp_path, change, message):
    config = config_of(runs, **change(config_of(runs)))
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "4").exists()


def test_a_judge_of_other_images_or_shorter_texts_is_refused_in_one_line(runs):
    config = config_of(runs)
    for data, message in (
        (
            dataclasses.replace(DATA, image_size=16),
            r"reads images of shape \(8, 8, 3\), and the data's have \(16, 16, 3\)",
        ),
        (dataclasses.replace(DATA, seq_len=9), r"reads texts of up to 8 tokens, and the data's have 9"),
    ):
        with pytest.raises(ValueError, match=rf"^objective\.judge = '.*' {message}[^\n]*$"):
            check_judge(dataclasses.replace(config, data=data))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 1024}, r"model\.vocab_size = 1024, but the data needs at least 10\d\d"),
        ({"max_seq_len": 20}, r"model\.max_seq_len = 20, but the data needs at least 24"),
    ],
)
def test_a_decoder_that_is_too_small_for_both_is_refused_in_one_line(runs, tmp_path, sizes, message):
    config = config_of(runs)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        train(config, tmp_path / "run")


def test_a_run_that_draws_neither_continues_texts_nor_is_served(runs):
    config, folder = config_of(runs), runs / "dalle"
    sample = dataclasses.replace(config.eval.sample, prompt="red heart")
    with pytest.raises(ValueError, match=r"^prompt = 'red heart': a run of TextThenImage continues no texts; [^\n]*$"):
        generate_from_run(config, folder, sample, seed=0, num_samples=1)
    with pytest.raises(ValueError, match=r"^serve: .*: a run of TextThenImage continues no texts; [^\n]*$"):
        open_served(config, folder, ServeConfig(), "")
