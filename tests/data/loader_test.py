import dataclasses
import json

import jax
import numpy as np
import pytest

from bigmodel_jax.core.sharding import ParallelConfig, Rules, make_mesh
from bigmodel_jax.data import ImageData, TextData, TextFiles, TokenizerConfig, eval_batches, make_iterator
from bigmodel_jax.data.loader import EvalBatches, Sampler
from bigmodel_jax.data.sources.sources import Arrays


def make_arrays():
    rng = np.random.default_rng(0)

    def split(n):
        return {"image": rng.integers(0, 256, (n, 6, 6, 1), np.uint8), "label": np.arange(n) % 10}

    return {"train": split(37), "validation": split(21)}


@pytest.fixture(params=["text", "image"])
def config(request, tmp_path):
    if request.param == "image":
        return ImageData(cache_dir=str(tmp_path), source=Arrays(f"{__name__}:make_arrays"), max_shift=1)
    (tmp_path / "t.txt").write_text("some text to train on, with letters. " * 30)
    source = TextFiles(str(tmp_path / "t.txt"), str(tmp_path / "t.txt"))
    return TextData(cache_dir=str(tmp_path / "c"), source=source, tokenizer=TokenizerConfig("bytes"), seq_len=16)


def mesh_of(num_devices, **axes):
    return make_mesh(ParallelConfig(**axes), jax.devices()[:num_devices])


def host(batch):
    return {k: np.array(v) for k, v in batch.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def test_batches_do_not_depend_on_the_devices(config):
    layouts = [mesh_of(1), mesh_of(8), mesh_of(8, data=2, fsdp=2, tensor=2), mesh_of(4, data=1, stage=2, seq=2)]
    iterators = [make_iterator(config, batch_size=8, seed=3, mesh=mesh) for mesh in layouts]
    for _ in range(7):  # more than one epoch
        first, *others = [host(next(it)) for it in iterators]
        for other in others:
            assert_same(first, other)


@pytest.mark.parametrize("processes", [2, 4])
def test_batches_do_not_depend_on_the_processes(config, processes):
    sampler = Sampler(config.open("train"), 8, seed=3)
    rows = 8 // processes
    for number in (0, 1, 9):
        parts = [sampler.local(number, p * rows, (p + 1) * rows) for p in range(processes)]
        assert_same(sampler.local(number), {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


def test_the_order_of_examples_does_not_depend_on_the_batch_size(config):
    small, large = (Sampler(config.open("train"), size, seed=0) for size in (4, 8))
    both = [small.local(4), small.local(5)]
    assert_same(large.local(2), {k: np.concatenate([b[k] for b in both]) for k in both[0]})


def test_resume_is_exact_also_on_other_devices(config):
    iterator = make_iterator(config, batch_size=8, seed=0, mesh=mesh_of(8))
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.position()))
    assert state == {"next_batch": 5}
    expected = [host(next(iterator)) for _ in range(3)]
    resumed = make_iterator(config, batch_size=8, seed=0, mesh=mesh_of(2))
    next(resumed)
    resumed.seek(0, state)
    for batch in expected:
        assert_same(batch, host(next(resumed)))
    assert resumed.position() == iterator.position()


def test_seeds_differ(config):
    a, b = (host(next(make_iterator(config, batch_size=8, seed=s, mesh=mesh_of(1)))) for s in (0, 1))
    assert any(not np.array_equal(a[k], b[k]) for k in a)


def test_an_epoch_holds_every_row_once(config):
    config = dataclasses.replace(config, max_shift=0) if isinstance(config, ImageData) else config
    rows = config.open("train")
    sampler = Sampler(rows, len(rows), seed=0)
    name = "tokens" if isinstance(config, TextData) else "image"
    whole = rows.batch(np.arange(len(rows)), None)[name].reshape(len(rows), -1)
    for epoch in range(2):
        seen = sampler.local(epoch)[name].reshape(len(rows), -1)
        np.testing.assert_array_equal(np.unique(seen, axis=0), np.unique(whole, axis=0))
        assert not np.array_equal(seen, whole)


def test_a_batch_is_not_changed_by_the_next(config):
    iterator = make_iterator(config, batch_size=8, seed=0, mesh=mesh_of(1))
    kept = next(iterator)
    before = host(kept)
    for _ in range(5):
        next(iterator)
    assert_same(before, host(kept))


def test_batches_lie_where_the_rules_say(config):
    mesh, rules = mesh_of(8, data=2, fsdp=2, tensor=2), Rules(batch=("data",))
    for batch in (
        next(make_iterator(config, batch_size=8, seed=0, mesh=mesh, rules=rules)),
        next(iter(eval_batches(config, batch_size=8, mesh=mesh, rules=rules))),
    ):
        assert all(x.sharding.spec[0] == "data" for x in batch.values())
        assert all(x.addressable_shards[0].data.shape[0] == 4 for x in batch.values())


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_evaluation_covers_every_row_once(config, batch_size):
    batches = eval_batches(config, batch_size=batch_size, mesh=mesh_of(8))
    rows = config.open("validation")
    whole = rows.batch(np.arange(len(rows)), None)
    found = [host(b) for b in batches]
    assert len(found) == len(batches) == -(-len(rows) // batch_size)
    joined = {k: np.concatenate([b[k] for b in found]) for k in found[0]}
    assert_same(whole, {k: v[: len(rows)] for k, v in joined.items()})
    assert not joined["weights"][len(rows) :].any()
    assert len(list(batches)) == len(batches)  # a second pass


def test_evaluation_does_not_depend_on_the_processes(config):
    batches = EvalBatches(config.open("validation"), 8, mesh_of(1), Rules())
    last = len(batches) - 1
    parts = [batches.local(last, low, low + 4) for low in (0, 4)]
    assert_same(batches.local(last, 0, 8), {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
