"""Saves on the hosts' own disks: whole or not used, the newest of both kinds, and never another
run's."""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.checkpoint import exchange, local, local_reading, pieces, store
from bigmodel_jax.checkpoint.store import CheckpointConfig


def make_mesh(data: int = 2, fsdp: int = 4) -> Mesh:
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


def make_state(mesh: Mesh, seed: int) -> dict:
    """A state with a leaf that is cut, one that is whole, a scalar, a leaf of two bytes, and random
    keys."""
    rng = np.random.default_rng(seed)
    values = {
        "params": {"w": (rng.normal(size=(8, 6)).astype(np.float32), P("fsdp")), "b": (jnp.arange(6.0) + seed, P())},
        "opt_state": {"m": (jnp.asarray(rng.normal(size=(3, 8)), jnp.bfloat16), P(None, ("data", "fsdp")))},
        "frozen": {"mask": (np.arange(8) % 3 == 0, P("data")), "key": (jax.random.key(seed), P())},
        "step": (jnp.int32(seed), P()),
    }
    pair = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda x: jax.device_put(x[0], NamedSharding(mesh, x[1])), values, is_leaf=pair)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def plain_bits(x) -> bytes:
    return np.asarray(local.plain(x)).tobytes()


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
        assert plain_bits(a) == plain_bits(b)


class Run:
    """A run's folder and its host's disk; `open` is what the start of a process does."""

    def __init__(self, folder: Path, disk: Path):
        self.folder, self.disk = folder, disk
        folder.mkdir(exist_ok=True)
        self.config = CheckpointConfig(local_dir=str(disk), local_every=1)

    def open(self, mesh: Mesh | None = None) -> tuple[store.Store, int]:
        saves = store.open_store(self.folder / "checkpoints", self.config)
        return saves, store.open_local(saves, self.folder, mesh or make_mesh())

    def save(self, steps, shared=()) -> None:
        """Saves these steps as a process does that is killed after the last of them."""
        saves, _ = self.open()
        for step in steps:
            if step in shared:
                store.save(saves, step, make_state(make_mesh(), step), {"next_batch": step}, {"lr": 0.1})
                store.wait(saves)
            else:
                store.save_local(saves, step, make_state(make_mesh(), step), {"next_batch": step}, {"lr": 0.1})
                local.wait(saves.local)
        saves.local.door.close()

    def restore(self, mesh: Mesh | None = None) -> store.Restored | None:
        saves, _ = self.open(mesh)
        try:
            return store.restore(saves, abstract(make_state(mesh or make_mesh(), 0)))
        finally:
            saves.local.door.close()

    def files(self) -> list[str]:
        """The steps on the disk."""
        return sorted(path.name.partition(".")[0] for path in self.disk.glob("*/*/*"))

    def one(self, pattern: str) -> Path:
        (path,) = self.disk.glob(f"*/*/{pattern}")
        return path


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run", tmp_path / "disk")


def test_what_is_saved_comes_back_bit_for_bit(run):
    run.save([3])
    found = run.restore()
    assert (found.step, found.data_state, found.config) == (3, {"next_batch": 3}, {"lr": 0.1})
    assert_same(found.state, make_state(make_mesh(), 3))


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "newest"), [((2,), 3), ((3,), 3), ((), 3)])
def test_the_newest_of_both_kinds_is_used(run, shared, newest):
    run.save([1, 2, 3], shared)
    saves, found = run.open()
    saves.local.door.close()
    assert found == newest
    assert_same(run.restore().state, make_state(make_mesh(), newest))


def test_a_shard_is_written_once_and_an_array_may_be_overwritten_at_once(run):
    mesh = make_mesh()
    saves, _ = run.open()
    state = make_state(mesh, 1)
    store.save_local(saves, 1, state, {}, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    local.wait(saves.local)
    saves.local.door.close()
    header = pieces.read_header(run.one("1.*"), "own_0")
    sizes = {}
    for leaf, _, _, size, _ in header["pieces"]:
        sizes[leaf] = sizes.get(leaf, 0) + size
    assert list(sizes.values()) == [x.nbytes for x in map(local.plain, jax.tree.leaves(make_state(mesh, 1)))]
    assert_same(run.restore().state, make_state(mesh, 1))


def damage_data(folder: Path) -> None:
    data = bytearray((folder / "own_0.data").read_bytes())
    data[40] ^= 4
    (folder / "own_0.data").write_bytes(data)


def damage_list(folder: Path) -> None:
    path = folder / "own_0.json"
    path.write_text(path.read_text().replace('"next_batch": 3', '"next_batch": 4'))


def cut(folder: Path) -> None:
    (folder / "own_0.data").write_bytes((folder / "own_0.data").read_bytes()[:-1])


def never_finished(folder: Path) -> None:
    (folder / "own_0.json").unlink()


@pytest.mark.parametrize("damage", [damage_data, damage_list, cut, never_finished])
@pytest.mark.parametrize("shared", [(2,), ()])
def test_a_save_that_is_not_whole_is_never_used(run, damage, shared):
    run.save([2, 3], shared)
    damage(run.one("3.*"))
    if shared:
        assert_same(run.restore().state, make_state(make_mesh(), 2))
    else:  # its older save went when step 3 was whole
        saves, newest = run.open()
        saves.local.door.close()
        assert (newest == -1) or run.restore() is None


def test_a_damaged_local_save_is_named(run, caplog):
    run.save([2, 3], shared=(2,))
    damage_data(run.one("3.*"))
    with caplog.at_level(logging.WARNING):
        assert run.restore().step == 2
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "local step 3 (own_0.data has a wrong checksum at byte 40); using step 2" in said


def test_another_mesh_takes_the_shared_checkpoint_and_says_so(run, caplog):
    run.save([2, 3], shared=(2,))
    mesh = make_mesh(4, 2)
    with caplog.at_level(logging.WARNING):
        found = run.restore(mesh)
    assert_same(found.state, make_state(mesh, 2))
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == (
        "checkpoint: the local save of step 3 cannot be used: it was made on data=2 x fsdp=4 in 1 process, "
        "and this is data=4 x fsdp=2 in 1 process; step 2 is used"
    )


def test_another_layout_of_the_same_mesh_is_not_put_together(run, caplog):
    run.save([2, 3], shared=(2,))
    saves, _ = run.open()
    other = abstract(make_state(make_mesh(), 0))
    other["params"]["w"] = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=NamedSharding(make_mesh(), P("data")))
    assert store.restore(saves, other).step == 2
    saves.local.door.close()
    assert "a piece that this layout needs" in caplog.text


def test_saves_of_another_run_are_never_used(run, tmp_path):
    """The other runs are one that was deleted and one whose folder was copied."""
    run.save([3])
    other = Run(tmp_path / "other", run.disk)
    saves, newest = other.open()
    saves.local.door.close()
    assert newest == -1
    shutil.copytree(run.folder, tmp_path / "copied")
    saves, newest = Run(tmp_path / "copied", run.disk).open()
    saves.local.door.close()
    assert newest == -1
    shutil.rmtree(run.folder)
    saves, newest = Run(run.folder, run.disk).open()
    saves.local.door.close()
    assert newest == -1


def test_older_saves_are_deleted_and_all_of_them_once_a_shared_one_is_newer(run):
    run.save([1, 2, 3])
    assert run.files() == ["3"]
    run.save([4])  # another start: what it finds stays until its own save is whole
    assert run.files() == ["4"]
    saves, _ = run.open()
    with saves:
        store.save(saves, 5, make_state(make_mesh(), 5), {}, {})
    assert run.files() == []
    assert not any(run.disk.iterdir())


def test_a_full_disk_warns_once_and_the_save_before_stays(run, caplog, monkeypatch):
    saves, _ = run.open()
    store.save_local(saves, 1, make_state(make_mesh(), 1), {}, {})
    local.wait(saves.local)
    write = pieces._write_all

    def full(file, chunk):
        write(file, chunk[: len(chunk) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pieces, "_write_all", full)
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):
            store.save_local(saves, step, make_state(make_mesh(), step), {}, {})
            local.wait(saves.local)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith("checkpoint: the local save of step 2 failed in process 0: No space left on device: ")
    assert run.files() == ["1"]
    monkeypatch.setattr(pieces, "_write_all", write)
    store.save_local(saves, 4, make_state(make_mesh(), 4), {}, {})
    local.wait(saves.local)
    saves.local.door.close()
    assert run.files() == ["4"]


def test_a_disk_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    run = Run(tmp_path / "run", tmp_path / "file")
    saves, newest = run.open()
    with saves, caplog.at_level(logging.WARNING):
        assert newest == -1
        store.save_local(saves, 1, make_state(make_mesh(), 1), {}, {})
    assert "Not a directory" in caplog.text


# ---------------------------------------------------------------- several processes, in one


@pytest.mark.parametrize(
    ("hosts", "keeps"),
    [
        ("aabb", [2, 3, 0, 1]),
        ("abab", [1, 2, 3, 0]),
        ("abc", [1, 2, 0]),
        ("aaa", [1, 2, 0]),
        ("aabbc", None),
        ("abcdabcd", None),
    ],
)
def test_a_copy_lies_on_another_host_and_nobody_keeps_two(hosts, keeps):
    found = [exchange.partner(list(hosts), p) for p in range(len(hosts))]
    assert sorted(found) == list(range(len(hosts)))
    assert keeps is None or [hosts[p] for p in found] == [hosts[p] for p in keeps]
    if len(set(hosts)) > 1:
        assert all(hosts[p] != hosts[other] for p, other in enumerate(found))


@pytest.fixture
def doors():
    """Two open doors; the second one answers from `kept`."""
    kept = {}

    def answer(request, body):
        if "keep" in request:
            kept[request["keep"]] = b"".join(body)
            return {}, b""
        if request["give"] not in kept:
            raise OSError(0, "no such piece", request["give"])
        return {"of": request["give"]}, kept[request["give"]]

    pair = [exchange.Exchange(answer, token="secret") for _ in range(2)]
    pair[0].addresses = {1: ("127.0.0.1", pair[1].port)}
    yield pair
    for door in pair:
        door.close()


def test_bytes_go_to_another_process_and_come_back(doors):
    data = bytes(range(256)) * 40_000
    doors[0].ask(1, {"keep": "a", "bytes": len(data)}, [memoryview(data)[:7], memoryview(data)[7:]])
    reply, found = doors[0].ask(1, {"give": "a"})
    assert reply["of"] == "a"
    assert found == data
    with pytest.raises(exchange.Refused, match="no such piece"):
        doors[0].ask(1, {"give": "b"})


def test_a_stranger_is_not_answered(doors):
    doors[0].token = "guess"
    with pytest.raises(OSError, match=r"closed the connection|reset|Broken pipe"):
        doors[0].ask(1, {"give": "a"})


def test_a_reason_arrives_although_much_was_still_to_be_sent(doors):
    def full(request, body):
        next(body)
        raise OSError(28, "No space left on device", "/disk/copy_0.data")

    doors[1]._server.answer = full
    with pytest.raises(exchange.Refused, match="No space left on device"):
        doors[0].ask(1, {"keep": "a", "bytes": 64 << 20}, [bytes(64 << 20)])


@pytest.mark.parametrize("own", ["damaged", "lost"])
@pytest.mark.parametrize("copy", ["whole", "damaged", "silent"])
def test_what_a_host_has_lost_comes_from_the_copy_on_another(run, tmp_path, own, copy):
    """A second exchange in this process, over a folder of its own, stands for the other host."""
    run.save([3])
    saves, _ = run.open()
    here, name = saves.local, run.one("3.*").name
    there = dataclasses.replace(here, folder=tmp_path / "other", headers={})
    there.door = exchange.Exchange(lambda request, body: local_reading._answer(there, request, body), here.door.token)
    (there.folder / "1" / name).mkdir(parents=True)
    for end in ("data", "json"):
        shutil.copy(run.one("3.*") / f"own_0.{end}", there.folder / "1" / name / f"copy_0.{end}")
    where = {"copy_0": [1]} | ({"own_0": [0]} if own == "damaged" else {})
    here.held = {3: {"name": name, "where": where}}
    here.door.addresses = {1: ("127.0.0.1", there.door.port)}
    if own == "damaged":
        damage_data(run.one("3.*"))
    else:
        shutil.rmtree(run.one("3.*"))
    if copy == "damaged":
        (there.folder / "1" / name / "copy_0.data").write_bytes(bytes(20))
    there.door.close() if copy == "silent" else None
    try:
        if copy == "whole":
            found, _ = local_reading.load(here, 3, abstract(make_state(make_mesh(), 0)))
            assert_same(found, make_state(make_mesh(), 3))
        else:
            with pytest.raises(local_reading.Damaged):
                local_reading.load(here, 3, abstract(make_state(make_mesh(), 0)))
    finally:
        here.door.close()
        if copy != "silent":
            there.door.close()


def test_names_from_outside_stay_in_the_folder(run):
    saves, _ = run.open()
    for name, file in (("../../x", "own_0"), ("1.0123abcd", "../own_0"), ("1.0123abcd", "own_0/../../x")):
        with pytest.raises(OSError, match="no such file"):
            local_reading._answer(saves.local, {"name": name, "keep": file, "header": {}}, iter(()))
    saves.local.door.close()
