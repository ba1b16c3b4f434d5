"""The cost of `parallel.deterministic`: steps of a small Llama with and without it, in alternation.

    JAX_NUM_CPU_DEVICES=2 uv run benchmarks/deterministic_cost.py [ROUNDS]

It prints the median milliseconds per step, under data parallelism and under FSDP, for three forms:
the plain step, the plain step in as many microbatches as a device has groups, and the deterministic
step.
"""

import dataclasses
import statistics
import sys
import time

import jax
import numpy as np

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

ROWS, LENGTH, GROUPS = 16, 128, 16
MODEL = LlamaConfig(
    vocab_size=4096, num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=512, max_seq_len=128
)


def batch(mesh, rules) -> dict:
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    arrays = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((ROWS, LENGTH), np.float32)}
    return {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, ("seq",))) for k, v in arrays.items()}


def runner(parallel: ParallelConfig, microbatches: int):
    """A function that makes one step and returns its seconds."""
    train = TrainConfig(steps=1000, batch_size=ROWS, microbatches=microbatches)
    config = Config(MODEL, NextToken(), DataConfig(), parallel=parallel, train=train)
    mesh = sharding.make_mesh(parallel)
    step, rows = make_train_step(config, mesh), batch(mesh, parallel.rules)
    state = init_state(config, mesh)

    def one() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = step(state, rows)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return one


def main(rounds: int) -> None:
    n = jax.device_count()
    print("| layout | plain ms | in microbatches ms | deterministic ms | deterministic / plain | / in microbatches |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, sizes in (("data", {"data": n}), ("fsdp", {"data": 1, "fsdp": n})):
        plain = ParallelConfig(**sizes)
        fixed = dataclasses.replace(plain, deterministic=True, deterministic_groups=GROUPS)
        steps = [runner(plain, 1), runner(plain, GROUPS // n), runner(fixed, 1)]
        seconds = np.array([[step() for step in steps] for _ in range(rounds + 1)][1:])
        a, b, c = (1e3 * statistics.median(column) for column in seconds.T)
        print(f"| {name} {n} | {a:.0f} | {b:.0f} | {c:.0f} | {c / a:.2f} | {c / b:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
