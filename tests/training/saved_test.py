"""What is done with a finished run: its newest checkpoint evaluated, and continued as text."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.training.checks import check_data, check_sample
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.saved import generate_from_run, load_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, folder) of a run of two steps that keeps an average of its parameters."""
    folder = tmp_path_factory.mktemp("saved")
    path = runs.write(folder)
    cli.main(["train", str(path), "--run_dir", str(folder / "run"), "--train.steps", "2", "--optim.ema_decay", "0.5"])
    return config_file.load(folder / "run"), folder / "run"


def test_an_evaluation_afterwards_is_the_one_of_the_run(run):
    config, run_dir = run
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    step, scalars = evaluate_run(config, run_dir)
    assert step == last["step"] == 2
    assert {name: last[name] for name in scalars} == pytest.approx(scalars, rel=1e-6)


def test_the_averaged_parameters_are_the_ones_used(run):
    config, run_dir = run
    mesh = sharding.make_mesh(config.parallel)
    averaged, step = load_weights(config, run_dir, mesh)
    raw = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema_decay=0.0))
    latest, _ = load_weights(raw, run_dir, mesh)
    assert step == 2
    different = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), averaged, latest)
    assert any(params.paths(different).values())


def test_weights_are_the_same_on_another_mesh(run):
    config, run_dir = run
    split = ParallelConfig(data=2, fsdp=2, tensor=2)
    here, _ = load_weights(config, run_dir, sharding.make_mesh(config.parallel))
    there, _ = load_weights(dataclasses.replace(config, parallel=split), run_dir, sharding.make_mesh(split))
    chex.assert_trees_all_equal(here, there)


def test_every_text_begins_with_the_prompt_and_the_seed_repeats_it(run):
    sample = SampleConfig(prompt="the quick", max_tokens=6)
    texts = generate_from_run(*run, sample, seed=1, num_samples=3)
    assert len(texts) == 3
    assert all(text.startswith("the quick") for text in texts)
    assert texts == generate_from_run(*run, sample, seed=1, num_samples=3)


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (SampleConfig(prompt=""), "prompt = ''"),
        (SampleConfig(prompt="a", max_tokens=0), "max_tokens = 0; it must be 1 or more"),
        (SampleConfig(prompt="a", temperature=-0.1), "temperature = -0.1; it must be 0 or more"),
        (SampleConfig(prompt="a", top_k=-1), "top_k = -1; it must be 0 or more"),
        (SampleConfig(prompt="a", top_p=1.1), "top_p = 1.1; it must be above 0 and at most 1"),
        (SampleConfig(prompt="a" * 40, max_tokens=8), "max_tokens = 8: with the prompt's 41 tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_generated_is_refused(run, sample, says):
    with pytest.raises(ValueError) as error:
        check_sample(run[0], sample, run[0].data.open_tokenizer(), prefix="eval.sample.")
    assert str(error.value).startswith(f"eval.sample.{says}")


def test_a_prompt_that_just_fits_is_taken(run):
    config, _ = run
    prompt = check_sample(config, SampleConfig(prompt="a" * 39, max_tokens=8), config.data.open_tokenizer())
    assert len(prompt) + 8 == config.model.max_seq_len


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 256), ("max_seq_len", 31)])
def test_a_model_too_small_for_its_data_is_refused(run, field, value):
    config, _ = run
    check_data(config)
    with pytest.raises(ValueError, match=rf"model\.{field} = {value}, but the data needs at least {value + 1}"):
        check_data(dataclasses.replace(config, model=dataclasses.replace(config.model, **{field: value})))
