"""The batches of a mixture with caps and stages, in one and four processes: the same bytes, by
sha256."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

import jobs
from bigmodel_jax.core import sharding
from bigmodel_jax.data import Arrays, ImageData, MixtureData, Stage
from bigmodel_jax.data.loader import Sampler, make_iterator

BATCHES, SIZE, DEVICES = 12, 8, 4


def web():
    return {split: {"image": np.arange(40)[:, None], "label": [0] * 40} for split in ("train", "validation")}


def books():
    return {split: {"image": 100 + np.arange(5)[:, None], "label": [1] * 5} for split in ("train", "validation")}


def mixture(folder) -> MixtureData:
    """Books have given their two passes within the second stage; the third draws by size."""
    return MixtureData(
        parts=tuple(ImageData(source=Arrays(f), num_classes=2, max_shift=0) for f in (web, books, web)),
        stages=(Stage(0, (4, 1, 1)), Stage(3, (1, 2, 0)), Stage(8, temperature=3)),
        max_epochs=(0, 2, 0),
        cache_dir=str(folder / "cache"),
    )


def digests(batches: list[dict[str, np.ndarray]]) -> list[str]:
    return [hashlib.sha256(b"".join(b[name].tobytes() for name in sorted(b))).hexdigest() for b in batches]


def whole(folder) -> list[str]:
    sampler = Sampler(mixture(folder).open("train"), SIZE, seed=3)
    found = [sampler.local(number) for number in range(BATCHES)]
    labels = np.concatenate([b["label"] for b in found])
    assert labels.sum() == 10, "two passes over five books"
    assert (labels[8 * SIZE :] == 0).all()
    return digests(found)


@pytest.mark.parametrize("count", [2, 4])
def test_the_rows_of_each_process_are_its_part_of_the_batch(tmp_path, count):
    sampler, size = Sampler(mixture(tmp_path).open("train"), SIZE, seed=3), SIZE // count
    batches = []
    for number in range(BATCHES):
        parts = [sampler.local(number, i * size, (i + 1) * size) for i in range(count)]
        batches.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    assert digests(batches) == whole(tmp_path)


@pytest.mark.slow
def test_one_and_four_processes_make_the_same_batches(tmp_path):
    expected = whole(tmp_path)
    for count in (1, 4):
        (out := tmp_path / str(count)).mkdir()
        port = jobs.free_port()
        commands = [[sys.executable, __file__, tmp_path, out, port, count, i] for i in range(count)]
        paths = {"PYTHONPATH": f"{jobs.ROOT}:{Path(__file__).parent}"}
        job = jobs.Job(commands, DEVICES // count, [paths] * count)
        assert job.wait() == [0] * count, job.everything()
        found = [np.load(out / f"{i}.npz") for i in range(count)]
        batches = [
            {k: np.concatenate([f[f"{k}.{n}"] for f in found]) for k in ("image", "label", "weights")}
            for n in range(BATCHES)
        ]
        assert digests(batches) == expected, f"{count} processes"


def write(folder: Path, out: Path, count: int, process: int) -> None:
    """The rows of every batch that this process's devices hold."""
    mesh = sharding.make_mesh(sharding.ParallelConfig(data=DEVICES))
    batches = make_iterator(mixture(folder), batch_size=SIZE, seed=3, mesh=mesh)
    found = {}
    for number in range(BATCHES):
        for name, x in next(batches).items():
            shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
            assert len(shards) == DEVICES // count
            found[f"{name}.{number}"] = np.concatenate([np.asarray(shard.data) for shard in shards])
    np.savez(out / f"{process}.npz", **found)


if __name__ == "__main__":
    import jax

    _, folder, out, port, count, process = sys.argv
    if count != "1":
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    write(Path(folder), Path(out), int(count), int(process))
