"""Steps far outside the recent spread: how they are told, skipped, or taken back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, SpikeConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.report import spike_records, step_trace
from bigmodel_jax.report.writers import read_metrics
from bigmodel_jax.training import run, spikes
from bigmodel_jax.training.checks import check_spikes
from bigmodel_jax.training.state import abstract_state, init_state
from bigmodel_jax.training.step import make_train_step
from changed_batches import change_batches
from step_test import CONFIG, one_device, text_batch

WATCHED = SpikeConfig("skip", window=8, deviations=6.0)


def filled(losses, norms=(1.0,) * 8):
    recent = spikes.fresh(WATCHED)
    for loss, norm in zip(losses, norms, strict=True):
        _, above, recent = spikes.judge(WATCHED, recent, jnp.float32(loss), jnp.float32(norm))
        assert above == 0, "no step is judged before the window is full"
    return recent


def test_deviations_are_robust_ones_of_the_last_steps():
    recent = filled([1, 2, 3, 4, 5, 6, 7, 8])
    spike, above, _ = spikes.judge(WATCHED, recent, jnp.float32(10.5), jnp.float32(1.0))
    # The median is 4.5, and that of the distances to it is 2.
    assert float(above) == pytest.approx(6 / (1.4826 * 2))
    assert not spike
    spike, above, _ = spikes.judge(WATCHED, recent, jnp.float32(0.0), jnp.float32(1.07))
    # Equal norms have a spread of 1 % of their median.
    assert float(above) == pytest.approx(7, rel=1e-4)
    assert spike


def test_a_loss_far_below_is_no_spike():
    assert not spikes.judge(WATCHED, filled([5.0] * 8), jnp.float32(0.1), jnp.float32(0.1))[0]


def test_what_is_not_finite_is_no_part_of_the_spread():
    before = filled([5.0, 5.1] * 4)
    for loss, norm in ((np.nan, 1.0), (5.0, np.inf)):
        spike, above, after = spikes.judge(WATCHED, before, jnp.float32(loss), jnp.float32(norm))
        assert not spike
        assert above == 0
        assert jax.tree.all(jax.tree.map(jnp.array_equal, before, after))


def test_a_level_that_stays_becomes_the_spread():
    recent, found = filled([1.0] * 8), []
    for _ in range(8):
        spike, _, recent = spikes.judge(WATCHED, recent, jnp.float32(2.0), jnp.float32(1.0))
        found.append(bool(spike))
    assert found == [True] * 4 + [False] * 4


def spiking(**changes):
    return dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, spikes=dataclasses.replace(WATCHED, **changes))
    )


def test_off_nothing_is_kept_and_the_program_is_the_same():
    state = jax.eval_shape(lambda: init_state(CONFIG, one_device()))
    assert state.recent is None
    texts = [
        make_train_step(config, one_device()).lower(state, text_batch()).as_text()
        for config in (CONFIG, spiking(action="off"))
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_spike_changes_no_weight():
    config, mesh = spiking(), one_device()
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    for _ in range(9):
        state, sums = step(state, text_batch())
        assert not float(sums["spikes"].total)
    before = sharding.to_host((state.params, state.opt_state))
    odd = text_batch() | {"targets": np.full_like(text_batch()["targets"], 63)}
    state, sums = step(state, odd)
    assert float(sums["spikes"].total) == 1
    assert float(sums["skipped_steps"].total) == 0
    assert float(sums["deviations"].compute()) > 6
    assert jax.tree.all(jax.tree.map(np.array_equal, before, sharding.to_host((state.params, state.opt_state))))
    assert int(state.step) == 10
    state, sums = step(state, text_batch())
    assert not float(sums["spikes"].total)


def test_going_back_needs_saves_and_rows_to_spare():
    with pytest.raises(ValueError, match="needs saves to go back to, such as --checkpoint.every 100"):
        check_spikes(spiking(action="rollback"))
    check_spikes(dataclasses.replace(spiking(action="rollback"), checkpoint=CheckpointConfig(every=4)))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--train.spikes.action=skipp", "skip"),
        ("--train.spikes.deviations=0", "above 0"),
        ("--train.spikes.window=2", "8 or more and at most 10000"),
        ("--report.watch=-1", "0 or more"),
    ],
)
def test_a_field_out_of_range_is_one_line(option, said, tmp_path, capsys):
    path = runs.write(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(path), "--run_dir", str(tmp_path / "run"), option])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert said in error
    assert option[2:].partition("=")[0] in error
    assert "Traceback" not in error


# --------------------------------------------------------------------------------------- whole runs

ODD = 17  # the number of a batch of random bytes, in a run whose text is one sentence


@pytest.fixture
def odd_batch(monkeypatch):
    def poisoned(number, batch):
        if number != ODD:
            return batch
        tokens = np.random.default_rng(0).integers(128, 250, batch["targets"].shape).astype(np.int32)
        return batch | {"targets": jax.device_put(tokens, batch["targets"].sharding)}

    change_batches(monkeypatch, poisoned)


def trained(tmp_path, name: str, *options: str):
    path = tmp_path / "tiny.py" if (tmp_path / "tiny.py").exists() else runs.write(tmp_path)
    folder = tmp_path / name
    fixed = ["--train.spikes.window", "8", "--eval.sample.prompt", "", "--report.tensorboard"]
    config = config_file.load(path, [*fixed, "False", *options])
    run.train(config, folder)
    with store.open_store(folder / "checkpoints", config.checkpoint) as saves:
        return folder, store.restore_params(saves, {"params": abstract_state(config, one_device()).params})["params"]


def losses(folder) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder) if "loss" in r}


@pytest.mark.slow
def test_a_spike_is_skipped_logged_and_the_resumed_run_is_the_same(tmp_path, odd_batch):
    options = ("--train.spikes.action", "skip", "--train.steps")
    whole, weights = trained(tmp_path, "whole", *options, "22")
    runs.killed(whole, 22, tmp_path / "parts")  # so that it goes on from step 20
    parts, same = trained(tmp_path, "parts", *options, "22")
    assert losses(whole) == losses(parts)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, weights, same))
    for folder in (whole, parts):
        (spike,) = spike_records.read(folder)
        assert (spike["step"], spike["action"], spike["back_to"]) == (ODD + 1, "skip", None)
        assert spike["deviations"] > 8
        assert "step 18: a spike (loss " in (folder / "log.txt").read_text()
        assert ">Spikes<" in (folder / "report.html").read_text()
    assert [r["spikes"] for r in read_metrics(whole) if "spikes" in r][ODD - 1 : ODD + 1] == [0, 1]


@pytest.mark.slow
def test_a_run_goes_back_to_its_last_save_and_on_with_the_batches_after_the_spike(tmp_path, odd_batch):
    """The run has the same bits as one that was killed at the save and then got the batches after
    the spike."""
    options = ("--train.spikes.action", "rollback", "--checkpoint.every", "8", "--train.steps")
    calm, _ = trained(tmp_path, "calm", "--train.steps", "24")
    back, weights = trained(tmp_path, "back", *options, "20")
    given, plain = step_trace.read(back)[1], step_trace.read(calm)[1]
    # The spike is step 18, the save that of step 16: steps 17 to 20 get batches 18 to 21.
    assert given.tolist() == [*plain[:16], *plain[18:22]]
    (spike,) = spike_records.read(back)
    assert (spike["step"], spike["back_to"], spike["batches"]) == (18, 16, 18)
    assert sorted(losses(back)) == list(range(1, 21)), "records of steps that were taken back are dropped"
    with store.open_store(back / "checkpoints", CheckpointConfig()) as saves:
        meta = json.loads((saves.directory / "20" / "meta" / "data.json").read_text())
    assert meta["data_state"]["next_batch"] == 22
    # Killed after the rollback and before the next save, it goes back once more, to the same end.
    runs.killed(back, 20, tmp_path / "parts")
    parts, same = trained(tmp_path, "parts", *options, "20")
    assert losses(parts) == losses(back)
    assert spike_records.read(parts) == [spike]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, weights, same))
