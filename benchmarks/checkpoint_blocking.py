"""How long an asynchronous save of 1.2 GB (100 M parameters with Adam state) blocks training.

    uv run benchmarks/checkpoint_blocking.py

It prints, for a shared save and for a local one (in /dev/shm, if it exists), how long the save
blocks and how long until it is written. The time of a step of this model stands beside them for
comparison.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from bigmodel_jax import runtime
from bigmodel_jax.checkpoint import local, store
from bigmodel_jax.config import CheckpointConfig, Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

LOCAL = "/dev/shm" if Path("/dev/shm").is_dir() else None
MODEL = LlamaConfig(
    vocab_size=32_000,
    num_layers=12,
    embed_dim=640,
    num_heads=10,
    num_kv_heads=10,
    head_dim=64,
    mlp_dim=1792,
    max_seq_len=256,
)


def main() -> None:
    runtime.keep_memory()
    runtime.keep_programs()
    config = Config(MODEL, NextToken(), DataConfig(), train=TrainConfig(steps=10, batch_size=4))
    mesh = sharding.make_mesh(config.parallel)
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (4, 257)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((4, 256), np.float32)}
    steps, after, blocking, durable = [], {}, {}, {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=LOCAL) as local_dir:
        cfg = CheckpointConfig(keep=1, local_dir=local_dir, local_every=1)
        with store.open_store(Path(folder) / "checkpoints", cfg) as saves:
            store.open_local(saves, Path(folder), mesh)
            waits = {"shared": lambda: store.wait(saves), "local": lambda: local.wait(saves.local)}
            for i in range(4):
                for kind, save in (("shared", store.save), ("local", store.save_local)):
                    state, seconds = timed(step, state, batch)
                    steps.append(seconds)
                    start = time.perf_counter()
                    save(saves, i + 1, state, {"next_batch": i}, {})
                    blocking.setdefault(kind, []).append(time.perf_counter() - start)
                    state, seconds = timed(step, state, batch)
                    after.setdefault(kind, []).append(seconds)
                    waits[kind]()
                    durable.setdefault(kind, []).append(time.perf_counter() - start)
    usual = statistics.median(steps[2:])
    print(f"{params.count(MODEL.make().spec) / 1e6:.0f} M parameters, 1,024 tokens a step; a step {usual:.2f} s")
    for kind in blocking:
        blocks, beside, done = (statistics.median(times[kind][1:]) for times in (blocking, after, durable))
        print(
            f"{kind:6s} save: blocks {blocks:.2f} s = {blocks / usual:.2f} steps, step beside it {beside:.2f} s, "
            f"written after {done:.1f} s"
        )


def timed(step, state, batch):
    """(the next state, seconds) of one step, including the wait for its metrics."""
    began = time.perf_counter()
    state, sums = step(state, batch)
    jax.block_until_ready(sums)
    return state, time.perf_counter() - began


if __name__ == "__main__":
    main()
