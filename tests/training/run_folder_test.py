"""A run's folder: whose it is, and what of a config may change when a run is continued."""

import dataclasses
import logging
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.models import CNNConfig, MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training import holder, run_folder

BASE = Config(MLPConfig(), Classification(), ImageData())


@pytest.mark.parametrize(
    "change",
    [
        {"train": TrainConfig(steps=9, log_every=1)},
        {"parallel": ParallelConfig(fsdp=2)},
        {"eval": EvalConfig(every=5, batch_size=8)},
        {"data": ImageData(cache_dir="elsewhere")},
    ],
)
def test_length_place_and_watching_may_change(change):
    assert run_folder.differences(BASE, dataclasses.replace(BASE, **change)) == {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"train": TrainConfig(seed=1)}, {"train.seed": (0, 1)}),
        ({"train": TrainConfig(batch_size=8)}, {"train.batch_size": (32, 8)}),
        ({"optim": OptimConfig(lr=1.0)}, {"optim.lr": (3e-4, 1.0)}),
        ({"data": ImageData(max_shift=1)}, {"data.max_shift": (0, 1)}),
        ({"model": MLPConfig(hidden_dims=(8,))}, {"model.hidden_dims": ((256, 256), (8,))}),
    ],
)
def test_what_is_learned_from_what_may_not(change, found):
    assert run_folder.differences(BASE, dataclasses.replace(BASE, **change)) == found


def test_another_model_is_another_run():
    assert run_folder.differences(BASE, dataclasses.replace(BASE, model=CNNConfig()))["model"] == (
        "MLPConfig",
        "CNNConfig",
    )


def claim(run_dir, config):
    with holder.Holder(run_dir) as hold, store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        run_folder.claim(run_dir, config, hold, saves, -1)


def test_check_writes_nothing_and_claim_writes_the_config(tmp_path):
    run_dir = tmp_path / "a" / "b"
    run_folder.check(run_dir, BASE)
    assert not (tmp_path / "a").exists()
    claim(run_dir, BASE)
    assert config_file.load(run_dir) == BASE
    run_folder.check(run_dir, BASE)
    with pytest.raises(ValueError, match=r"train\.seed was 0, now 1"):
        run_folder.check(run_dir, dataclasses.replace(BASE, train=TrainConfig(seed=1)))


def test_a_continued_run_keeps_its_newest_config(tmp_path):
    longer = dataclasses.replace(BASE, train=TrainConfig(steps=2000))
    for config in (BASE, longer):
        claim(tmp_path, config)
    assert config_file.load(tmp_path) == longer


def test_who_does_not_get_the_folder_writes_no_config(tmp_path):
    with holder.Holder(tmp_path) as first:
        first.take()
        with pytest.raises(ValueError, match="is in use"):
            claim(tmp_path, BASE)
    assert not (tmp_path / "config.json").exists()


def test_a_config_that_another_start_wrote_since_the_check_is_not_overwritten(tmp_path):
    run_folder.check(tmp_path, BASE)
    claim(tmp_path, dataclasses.replace(BASE, train=TrainConfig(seed=1)))
    with pytest.raises(ValueError, match=r"train\.seed was 1, now 0"):
        claim(tmp_path, BASE)
    assert config_file.load(tmp_path).train.seed == 1


def test_nothing_is_logged_to_a_file_before_the_start_and_everything_after(tmp_path, capsys):
    path, log = tmp_path / "log.txt", logging.getLogger("bigmodel_jax.data")
    with run_folder.logging_to(path) as start:
        log.warning("one bad record")
        assert not path.exists()
        start()
        log.info("step 1")
        assert "one bad record" in path.read_text()
    assert path.read_text().count("one bad record") == 1
    assert "step 1" in path.read_text()
    err = capsys.readouterr().err
    assert "one bad record" in err, "warnings are shown, too"
    assert "step 1" not in err
    log.warning("afterwards")
    assert "afterwards" not in path.read_text()


def test_a_run_that_never_starts_leaves_no_log(tmp_path):
    with run_folder.logging_to(tmp_path / "log.txt"):
        logging.getLogger("bigmodel_jax").warning("seen")
    assert not (tmp_path / "log.txt").exists()


def save_checkpoint(run_dir, config, step):
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        store.save(saves, step, {"step": jnp.asarray(step)}, {"next_batch": step}, config_file.to_json(config))


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_text(p.read_text()[:60])])
def test_a_run_without_its_config_file_is_known_by_its_checkpoints(tmp_path, damage, caplog):
    claim(tmp_path, BASE)
    save_checkpoint(tmp_path, BASE, 3)
    damage(tmp_path / "config.json")
    assert run_folder.load(tmp_path) == BASE
    assert "the config of the newest checkpoint is used" in caplog.text
    run_folder.check(tmp_path, BASE)
    with pytest.raises(ValueError, match=r"train\.seed was 0, now 1"):
        run_folder.check(tmp_path, dataclasses.replace(BASE, train=TrainConfig(seed=1)))
    longer = run_folder.load(tmp_path, ["--train.steps", "2000"])
    assert longer == dataclasses.replace(BASE, train=TrainConfig(steps=2000))


def test_a_folder_with_neither_config_nor_checkpoint_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        run_folder.load(tmp_path)


def test_checkpoints_that_came_in_between_are_not_overlooked(tmp_path):
    with store.open_store(tmp_path / "checkpoints", BASE.checkpoint) as saves:
        run_folder.check_still(saves, -1)
        save_checkpoint(tmp_path, BASE, 3)
        run_folder.check_still(saves, 3)
        run_folder.check_still(saves, 4)  # step 4 was found damaged
        with pytest.raises(ValueError, match="another process has trained there"):
            run_folder.check_still(saves, -1)


def test_a_log_on_a_full_disk_says_so_once_and_raises_nothing(capsys):
    with run_folder.logging_to(Path("/dev/full")) as start:
        start()
        for _ in range(3):
            logging.getLogger("bigmodel_jax").info("step")
    assert capsys.readouterr().err.strip() == "warning: /dev/full: No space left on device; log records are lost"


def test_the_docs_list_exactly_what_may_change():
    docs = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    passage = docs.split("**What may change between resumes**:")[1].split("A change of any other field")[0]
    computing = ("model.compute", "remat", "unroll", "attention")
    assert sorted(re.findall(r"`([\w.]+)`", passage)) == sorted((*run_folder.FREE, *computing))
