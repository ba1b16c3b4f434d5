"""Constants that lie in another run's folder: a run keeps where, and with which digest, and reads
them at every start."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from bigmodel_jax.config import TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.objectives import Classification
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.saved import load_weights
from constants_test import Features, leaves, run_config
from loop_test import run, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(config, folder) of a run that trains the matrix which the others take as a constant."""
    folder = tmp_path_factory.mktemp("first")
    config = run_config(folder, Features(kind="trained"), steps=2)
    run(config, folder / "first")
    return config, folder / "first"


@pytest.fixture(scope="module")
def second(first):
    """(config, folder) of a whole run of 4 steps beside the first one, whose matrix it reads in
    blocks."""
    folder = first[1].parent
    config = run_config(folder, Features(blocks="int8"), init_from=f"{folder}/first")
    run(config, folder / "second")
    return config, folder / "second"


def values(config, folder):
    mesh = sharding.make_mesh(config.parallel)
    return jax.device_get(load_weights(config, folder, mesh)[0])


def test_a_run_keeps_where_they_lie_and_none_of_them(first, second):
    _, folder = second
    said = json.loads((folder / "constants.json").read_text())
    (source,) = said["sources"]
    assert (source["beside"], source["step"]) == ("../first/checkpoints", 2)
    assert source["leaves"].keys() == {"features"}
    assert source["leaves"]["features"][:2] == ["ema/features", [64, 37]], "the average, which an evaluation would use"
    assert not (folder / "constants").exists()
    assert not any("features" in path for path in leaves(folder, 4))
    want = Blocks("int8", 37).pack(values(*first)["features"])
    jax.tree.map(np.testing.assert_array_equal, values(*second)["features"], want)


def test_a_source_may_be_named_from_the_folder_that_one_works_in(second, monkeypatch):
    config, folder = second
    monkeypatch.chdir(folder.parent)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from="first"))
    found = fresh_state(config, sharding.make_mesh(config.parallel))
    jax.tree.map(np.testing.assert_array_equal, found.constants["features"], values(*second)["features"])
    assert all(place.directory.is_absolute() for place in found.places.values())


def test_a_resumed_run_reads_them_again_bit_for_bit(second, tmp_path):
    config, straight = second
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    run(half, tmp_path / "run")
    said, _ = run(config, tmp_path / "run")
    assert "Resuming at step 2." in said
    same(dataclasses.replace(config, parallel=ParallelConfig(data=1)), straight, tmp_path / "run")


def test_a_third_run_refers_to_the_first_and_not_to_the_second(first, second, tmp_path):
    config, folder = second
    for state, start in (("weights", 0), ("all", 2)):
        init = {"init_from": f"{folder}@2", "init_state": state}
        third = dataclasses.replace(config, train=dataclasses.replace(config.train, **init))
        found = fresh_state(third, sharding.make_mesh(config.parallel))
        assert found.places["features"].directory == first[1] / "checkpoints"
        assert int(found.state.step) == start
        jax.tree.map(np.testing.assert_array_equal, found.constants["features"], values(*second)["features"])


@pytest.fixture
def moved(first, second, tmp_path):
    """Copies of both folders, side by side."""
    for name, (_, folder) in {"first": first, "second": second}.items():
        shutil.copytree(folder, tmp_path / "runs" / name)
    text = (tmp_path / "runs/second/constants.json").read_text()
    (tmp_path / "runs/second/constants.json").write_text(text.replace(str(first[1].parent), "/gone"))
    return tmp_path / "runs"


def test_both_folders_may_move_together_and_the_run_be_used_on_another_mesh(moved, second):
    config = dataclasses.replace(second[0], parallel=ParallelConfig(data=2, fsdp=4))
    assert evaluate_run(config, moved / "second")[0] == 4
    jax.tree.map(np.testing.assert_array_equal, values(config, moved / "second"), values(*second))


def more(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))


def test_a_source_that_is_gone_is_one_line_with_the_way_out(moved, second):
    (moved / "first").rename(moved / "other")
    says = r"^run_dir = '.*second': step 2 of /gone/first/checkpoints is gone, .*; put it back, or write where it lies now as "
    with pytest.raises(ValueError, match=says) as error:
        run(more(second[0]), moved / "second")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=says):
        evaluate_run(second[0], moved / "second")
    file = moved / "second/constants.json"
    file.write_text(file.read_text().replace("/gone/first", str(moved / "other")))
    assert "Resuming at step 4." in run(more(second[0]), moved / "second")[0]


def test_a_source_that_has_changed_is_one_line_that_names_what(moved, second, first):
    shutil.rmtree(moved / "first")
    other = dataclasses.replace(first[0], train=dataclasses.replace(first[0].train, seed=9))
    run(other, moved / "first")
    says = r"step 2 of .*first/checkpoints is not what this run started from: ema/features changed; put back what was there"
    with pytest.raises(ValueError, match=says) as error:
        run(more(second[0]), moved / "second")
    assert "\n" not in str(error.value)


def test_a_source_whose_bytes_are_damaged_is_one_line(moved, second):
    files = [p for p in (moved / "first/checkpoints/2/ema").rglob("*") if p.is_file()]
    big = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(big.read_bytes())
    content[len(content) // 2] ^= 1
    big.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"^checkpoint: \S+/first/checkpoints/2 is damaged: "):
        run(more(second[0]), moved / "second")


@pytest.mark.parametrize("content", ["{", "[]", '{"sources": [{}]}', '{"sources": [{"folder": 1}]}', "[" * 5000])
def test_a_damaged_list_of_them_is_one_line(moved, second, content):
    (moved / "second/constants.json").write_text(content)
    with pytest.raises(ValueError, match=r"constants\.json, which says where .*, is damaged; copy it back") as error:
        evaluate_run(second[0], moved / "second")
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Teacher(Classification):
    """The mean of logits and those that another run's layer gives on the same pixels."""

    source: str = ""
    rows: int = 64

    def parameters(self, model):
        kernel = Param((self.rows, 37), ("embed", "mlp"), normal(1.0), kind="constant")
        return {"teacher": {"features": kernel}}

    def sources(self):
        return {"teacher": self.source}


def test_an_objectives_constants_come_from_its_sources(first, tmp_path):
    config = run_config(first[1].parent, Features(kind="trained"), steps=1)
    config = dataclasses.replace(config, objective=Teacher(source=f"{first[1]}@2"))
    said, _ = run(config, tmp_path / "run")
    assert f"The weights of teacher are those of {first[1]}@2." in said
    entry = json.loads((tmp_path / "run/constants.json").read_text())["sources"][0]
    assert entry["leaves"].keys() == {"teacher/features"}
    np.testing.assert_array_equal(values(config, tmp_path / "run")["teacher"]["features"], values(*first)["features"])
    fresh = params.paths(fresh_state(config, sharding.make_mesh(config.parallel)).state.params)
    assert not np.array_equal(fresh["features"], values(*first)["features"]), "the model's own begin anew"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": "/no"}, r"objective\.sources: teacher = '/no' is not a run's folder"),
        (
            {"rows": 32},
            r"objective\.sources: teacher = '\S+' holds other shapes: teacher/features \(64, 37\), here \(32, 37",
        ),
        ({"source": "@7"}, r"objective\.sources: teacher = '\S+@7': that step is not kept; "),
    ],
)
def test_a_source_that_does_not_fit_is_one_line(first, change, says):
    change = {"source": str(first[1])} | change
    if change["source"].startswith("@"):
        change["source"] = f"{first[1]}{change['source']}"
    config = run_config(first[1].parent, Features(kind="trained"), **vars(TrainConfig(steps=1, batch_size=8)))
    config = dataclasses.replace(config, objective=Teacher(**change))
    with pytest.raises(ValueError, match=says):
        fresh_state(config, sharding.make_mesh(config.parallel))
