"""What is saved comes back, bit for bit, on any mesh; what is damaged is found, named, and passed
over."""

import asyncio
import gc
import logging
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.checkpoint import store
from bigmodel_jax.checkpoint.store import CheckpointConfig


@struct.dataclass
class State:
    step: jax.Array
    params: Any
    frozen: Any
    opt_state: Any
    ema: Any


def make_state(seed: int = 0, rows: int = 64) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "layers": {"w": jnp.asarray(rng.normal(size=(rows, 8)), jnp.float32), "b": jnp.ones(8, jnp.bfloat16)},
        "embed": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
    }
    adamw = optax.adamw(1e-3)
    _, opt_state = adamw.update(params, adamw.init(params), params)
    frozen = {"mask": jnp.arange(8) % 3 == 0, "key": jax.random.key(seed)}
    return State(jnp.asarray(seed, jnp.int32), params, frozen, opt_state, None)


def place(state: State, devices: int, spec: P) -> State:
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1 if devices == 1 else 2), ("a", "b"))
    split = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.device_put(x, split if x.ndim == 2 else NamedSharding(mesh, P())), state)


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(x: jax.Array) -> bytes:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert bits(a) == bits(b)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """Steps 1 and 2, to be copied before they are damaged."""
    directory = tmp_path_factory.mktemp("two_steps")
    with store.open_store(directory, CheckpointConfig()) as saves:
        for step in (1, 2):
            store.save(saves, step, make_state(step), {"position": step}, {"lr": 0.1})
    return directory


@pytest.fixture
def copy(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def open_plain(directory: Path) -> store.Store:
    return store.open_store(directory, CheckpointConfig())


# ---------------------------------------------------------------- round trips


def test_round_trip_on_other_meshes_and_other_layouts(tmp_path):
    state = place(make_state(3), 8, P("a", "b"))
    with open_plain(tmp_path) as saves:
        store.save(saves, 7, state, {"position": [1, {"file": "x"}]}, {"model": {"dim": 8}})
        for devices, spec in [(8, P("a", "b")), (8, P(None, "a")), (4, P("b", "a")), (1, P())]:
            target = abstract(place(make_state(0), devices, spec))
            restored = store.restore(saves, target)
            assert_same(restored.state, state)
            assert restored.state.params["layers"]["w"].sharding == target.params["layers"]["w"].sharding
        assert restored[1:] == ({"position": [1, {"file": "x"}]}, {"model": {"dim": 8}}, 7)
    assert store.read_config(tmp_path) == {"model": {"dim": 8}}


def test_abstract_leaves_without_sharding_land_on_one_device(copy):
    plain = jax.eval_shape(lambda: make_state(2))
    state = store.restore(open_plain(copy), plain).state
    assert_same(state, make_state(2))
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_buffers_may_be_donated_once_save_returns(tmp_path):
    state = make_state(1, rows=100_000)
    expected = jax.tree.map(jnp.copy, state)
    scramble = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    with open_plain(tmp_path) as saves:
        store.save(saves, 1, state, {}, {})
        w = scramble(state.params["layers"]["w"])
        state.opt_state[0].mu["layers"]["w"].delete()
        assert (w == -1).all()
        assert_same(store.restore(saves, abstract(expected)).state, expected)


def test_parameters_alone_without_the_optimizer_state(copy):
    shutil.rmtree(copy / "2" / "opt_state")
    state = make_state(2)
    found = store.restore_params(open_plain(copy), abstract({"params": state.params, "frozen": state.frozen}))
    assert_same(found, {"params": state.params, "frozen": state.frozen})


def test_another_step_by_number(copy):
    saves = open_plain(copy)
    assert int(store.restore(saves, abstract(make_state()), step=1).state.step) == 1
    with pytest.raises(ValueError, match=r"no step 5 .* \[1, 2\]"):
        store.restore(saves, abstract(make_state()), step=5)


# ---------------------------------------------------------------- what is kept


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 1)])
def test_the_newest_and_the_best_stay(tmp_path, mode, best):
    losses = {1: 9.0, 2: 0.5, 3: float("nan"), 4: 3.0, 5: None, 6: 2.0}
    config = CheckpointConfig(keep=2, best_metric="eval/loss", best_mode=mode)
    for half in ([1, 2, 3], [4, 5, 6]):  # the second process learns the best from the folder
        with store.open_store(tmp_path, config) as saves:
            for step in half:
                metrics = None if losses[step] is None else {"eval/loss": losses[step], "loss": 1.0}
                store.save(saves, step, make_state(step), {}, {}, metrics=metrics)
                assert store.latest_step(saves) == step
    assert store.steps(saves) == sorted(int(p.name) for p in tmp_path.iterdir()) == [best, 5, 6]


def test_a_step_is_saved_once(copy):
    with open_plain(copy) as saves, pytest.raises(ValueError, match="step 2 is already saved"):
        store.save(saves, 2, make_state(2), {}, {})


def test_a_step_before_the_newest_is_saved_too(copy):
    with open_plain(copy) as saves:
        store.save(saves, 9, make_state(9), {}, {})
        store.save(saves, 5, make_state(5), {}, {})
    assert_same(store.restore(saves, abstract(make_state()), step=5).state, make_state(5))


# ---------------------------------------------------------------- damage


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_in(data: bytes, folder: Path) -> None:
    """One flipped bit in the middle of where `data` lies in one of the files of `folder`."""
    for file in (p for p in folder.rglob("*") if p.is_file()):
        content = bytearray(file.read_bytes())
        at = content.find(data)
        if at >= 0:
            content[at + len(data) // 2] ^= 16
            file.write_bytes(content)
            return
    raise AssertionError("the array is not stored as it is in memory")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "flipped bit in params": (
        lambda d: flip_in(bits(make_state(2).params["layers"]["w"]), d / "params"),
        "digest of params/layers/w",
    ),
    "flipped bit in opt_state": (
        lambda d: flip_in(bits(make_state(2).opt_state[0].nu["layers"]["w"]), d / "opt_state"),
        "digest of opt_state/0/nu/layers/w",
    ),
    "cut data file": (lambda d: cut_short(largest(d / "params")), "params"),
    "no manifest": (lambda d: (d / "params" / "manifest.ocdbt").unlink(), "params/manifest.ocdbt is missing"),
    "cut tree metadata": (lambda d: cut_short(d / "opt_state" / "_METADATA"), "opt_state/_METADATA is not JSON"),
    "no meta": (lambda d: (d / "meta" / "data.json").unlink(), "meta/data.json is missing"),
    "cut meta": (lambda d: cut_short(d / "meta" / "data.json"), "meta/data.json is not JSON"),
    "other position": (
        lambda d: (d / "meta" / "data.json").write_text(
            (d / "meta" / "data.json").read_text().replace('"position": 2', '"position": 3')
        ),
        "meta/data.json has a wrong checksum",
    ),
    "digests lost": (lambda d: shutil.rmtree(d / "digest"), "digest/manifest.ocdbt is missing"),
    "emptied": (lambda d: (shutil.rmtree(d), d.mkdir()), "empty folder"),
}


@pytest.mark.few("flipped bit in params", "cut data file", "no manifest", "digests lost", "emptied")
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_it_used(copy, kind, caplog, capfd):
    damage, what = DAMAGE[kind]
    damage(copy / "2")
    before = sorted(copy.rglob("*"))
    with open_plain(copy) as saves:
        restored = store.restore(saves, abstract(make_state()))
        assert_same(restored.state, make_state(1))
        assert (restored.step, restored.data_state) == (1, {"position": 1})
        assert store.latest_step(saves) == 1
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        message = record.getMessage()
        assert "step 2 (" in message
        assert message.endswith("using step 1")
        assert "\n" not in message
        assert re.search(what, message), message
        assert sorted(copy.rglob("*")) == before  # reading changes nothing
        # Training goes on from step 1 and reaches step 2 again.
        store.save(saves, 2, make_state(2), {"position": 2}, {})
    assert sorted(p.name for p in copy.iterdir()) == ["1", "2", "2.damaged"]
    assert_same(store.restore(open_plain(copy), abstract(make_state())).state, make_state(2))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.exhaustive
def test_a_task_that_a_failed_load_left_behind_says_nothing_when_it_ends_later(copy, caplog):
    """Orbax reads several files at once and reports the first failure. On a loaded machine, the
    others fail later."""
    DAMAGE["cut data file"][0](copy / "2")
    with open_plain(copy) as saves:
        store.restore(saves, abstract(make_state()))

    async def failing():
        raise ValueError("manifest.ocdbt is damaged")

    async def leaves_one():
        asyncio.ensure_future(failing())  # noqa: RUF006 - nobody keeps it: that is the case
        await asyncio.sleep(0.01)

    caplog.clear()
    asyncio.run(leaves_one())
    gc.collect()
    assert not caplog.records


def test_a_save_that_never_finished_is_ignored_and_deleted_by_the_next_save(copy):
    (copy / "5.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with open_plain(copy) as saves:
        assert store.steps(saves) == [1, 2]
        assert store.restore(saves, abstract(make_state())).step == 2
        assert (copy / "5.orbax-checkpoint-tmp").exists()  # it may be another process's, still writing
        store.save(saves, 3, make_state(3), {}, {})
    assert sorted(p.name for p in copy.iterdir()) == ["2", "3"]


def test_nothing_good_is_one_line(copy, tmp_path):
    with pytest.raises(ValueError, match=r"no finished checkpoint in .*/empty$"):
        store.restore(open_plain(tmp_path / "empty"), abstract(make_state()))
    assert not (tmp_path / "empty").exists()
    for step in ("1", "2"):
        (copy / step / "meta" / "data.json").unlink()
    with pytest.raises(ValueError, match=r"no undamaged checkpoint .*step 2 \(.*step 1 \(") as error:
        store.restore(open_plain(copy), abstract(make_state()))
    assert "\n" not in str(error.value)


def test_damaged_metrics_cost_the_ranking_only(tmp_path):
    config = CheckpointConfig(keep=1, best_metric="eval/loss")
    with store.open_store(tmp_path, config) as saves:
        store.save(saves, 1, make_state(1), {}, {}, metrics={"eval/loss": 1.0})
    cut_short(tmp_path / "1" / "metrics" / "metrics")
    with store.open_store(tmp_path, config) as saves:
        assert store.restore(saves, abstract(make_state())).step == 1
        store.save(saves, 2, make_state(2), {}, {}, metrics={"eval/loss": 2.0})
    assert store.steps(saves) == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(params=s.params | {"head": s.step}), "it lacks params/head$"),
        (lambda s: s.replace(params={"embed": s.params["embed"]}), "it also has params/layers/b, params/layers/w$"),
        (
            lambda s: s.replace(params=s.params | {"embed": s.params["embed"].T}),
            r"params/embed float32\[8,4\], here float32\[4,8\]$",
        ),
        (lambda s: s.replace(opt_state=optax.sgd(1.0).init(s.params)), "it also has opt_state/0/count, .* and 4 more$"),
    ],
)
def test_another_model_is_one_line_that_names_leaves(copy, change, message):
    with pytest.raises(ValueError, match=message) as error:
        store.restore(open_plain(copy), abstract(change(make_state(2))))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- failing and dying


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_one_save(tmp_path):
    big = make_state(3, rows=100_000)
    with open_plain(tmp_path) as saves:
        store.save(saves, 1, make_state(1), {}, {})
        store.wait(saves)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # a file that may not grow: EFBIG for ENOSPC
        try:
            store.save(saves, 2, big, {}, {})
            with pytest.raises(OSError, match=f"step 2 could not be saved in {tmp_path}: .*large") as error:
                store.wait(saves)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value)
        assert [p.name for p in tmp_path.iterdir()] == ["1"]
        assert_same(store.restore(saves, abstract(make_state())).state, make_state(1))
        store.save(saves, 2, big, {}, {})
    assert_same(store.restore(saves, abstract(big)).state, big)
    assert store.steps(saves) == [1, 2]


def test_a_failed_save_is_told_by_the_next_one(tmp_path):
    with open_plain(tmp_path) as saves:
        store.save(saves, 1, make_state(1), {}, {})
        store.wait(saves)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            store.save(saves, 2, make_state(2, rows=100_000), {}, {})
            with pytest.raises(OSError, match="step 2 could not be saved"):
                store.save(saves, 3, make_state(3), {}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.save(saves, 3, make_state(3), {}, {})
    assert store.steps(saves) == [1, 3]


CHILD = """
import sys, jax.numpy as jnp
from bigmodel_jax.checkpoint import store
with store.open_store(sys.argv[1], store.CheckpointConfig()) as saves:
    for step in (1, 2):
        store.save(saves, step, {"w": jnp.full((4096, 4096), step, jnp.float32)}, {"position": step}, {})
        if step == 1:
            store.wait(saves)
    print("SAVING", flush=True)
"""


@pytest.mark.few("0.05")
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_sigkill_in_the_middle_of_a_save_costs_that_save_at_most(tmp_path, delay):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "SAVING\n"
    time.sleep(delay)
    child.kill()
    assert child.wait() == -9
    target = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}
    with open_plain(tmp_path) as saves:
        restored = store.restore(saves, target)
        assert restored.data_state == {"position": restored.step}
        assert (restored.state["w"] == restored.step).all()
        assert store.steps(saves) in ([1], [1, 2])
        store.save(saves, 3, {"w": jnp.full((4096, 4096), 3.0)}, {}, {})
    assert "3" in {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*tmp*"))  # what the killed save has left is gone


def test_the_description_of_another_step_is_damage(tmp_path, caplog):
    with store.open_store(tmp_path, CheckpointConfig(keep=5)) as saves:
        for step in (1, 2):
            store.save(saves, step, {"x": jnp.arange(4.0)}, {"next_batch": step}, {})
    shutil.copytree(tmp_path / "1" / "meta", tmp_path / "2" / "meta", dirs_exist_ok=True)
    with store.open_store(tmp_path, CheckpointConfig(keep=5)) as saves:
        found = store.restore(saves, {"x": jax.ShapeDtypeStruct((4,), jnp.float32)})
    assert found.step == 1
    assert "step 2 (meta/data.json is of step 1)" in caplog.text
