"""How long an asynchronous save holds the loop up: a state of 100 million parameters with Adam's moments (1.2 GB).

    uv run benchmarks/checkpoint_blocking.py

Prints the seconds that `save` blocks, the seconds until the checkpoint is on disk, and a step of that model for scale.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from bigmodel_jax import runtime
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

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
    steps, blocking, durable, after = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, store.open_store(Path(folder), CheckpointConfig(keep=1)) as saves:
        for i in range(4):
            for times in (steps, steps, after):
                if times is after:
                    start = time.perf_counter()
                    store.save(saves, i + 1, state, {"next_batch": i}, {})
                    blocking.append(time.perf_counter() - start)
                began = time.perf_counter()
                state, sums = step(state, batch)
                jax.block_until_ready(sums)
                times.append(time.perf_counter() - began)
            store.wait(saves)
            durable.append(time.perf_counter() - start)
    median = statistics.median
    print(f"{params.count(MODEL.make().spec) / 1e6:.0f} M parameters, 1,024 tokens a step")
    print(f"step {median(steps[2:]):.2f} s, step during a save {median(after[1:]):.2f} s")
    print(f"save blocks {median(blocking[1:]):.2f} s = {median(blocking[1:]) / median(steps[2:]):.2f} steps")
    print(f"on disk after {median(durable[1:]):.1f} s")


if __name__ == "__main__":
    main()
