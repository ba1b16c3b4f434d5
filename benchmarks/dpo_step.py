"""The cost of a DPO step on B pairs beside a fine-tuning step on the same 2B texts, in alternation.

    JAX_NUM_CPU_DEVICES=1 uv run benchmarks/dpo_step.py [ROUNDS]

The model has SmolLM2-135M's sizes and random weights. The reference model is cached: the batch
holds two numbers per pair. It prints the median milliseconds of a step, and the median ratio over
rounds. Both are given in wall-clock time and in processor time, which other programs on the machine
affect less.
"""

import sys
import time

import jax
import numpy as np

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import DPO, NextToken, Objective
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

PAIRS, LENGTH, PROMPT = 4, 128, 48
MODEL = PRESETS["smollm2-135m"]


def config_of(objective: Objective, rows: int) -> Config:
    train = TrainConfig(steps=1000, batch_size=rows)
    return Config(MODEL, objective, DataConfig(), OptimConfig(lr=1e-6), ParallelConfig(data=1), train)


def pairs() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (PAIRS, 2, LENGTH + 1)).astype(np.int32)
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (PAIRS, 2, LENGTH))
    return {
        "tokens": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "segment_ids": np.ones_like(place),
        "positions": place,
        "weights": (place >= PROMPT).astype(np.float32),
    }


def main(rounds: int) -> None:
    of_pairs = pairs()
    of_rows = {name: x.reshape(2 * PAIRS, LENGTH) for name, x in of_pairs.items()}
    of_pairs["reference"] = np.full((PAIRS, 2), -800.0, np.float32)
    tuned, preferred = config_of(NextToken(), 2 * PAIRS), config_of(DPO(), PAIRS)
    mesh = sharding.make_mesh(tuned.parallel, jax.devices()[:1])
    state = init_state(tuned, mesh)  # shared: both steps update this state in turn
    steps = [
        (make_train_step(config, mesh), {name: jax.device_put(x) for name, x in batch.items()})
        for config, batch in ((tuned, of_rows), (preferred, of_pairs))
    ]
    seconds = []
    for _ in range(rounds + 1):
        seconds.append([])
        for step, batch in steps:
            start = np.array([time.perf_counter(), time.process_time()])
            state, _ = step(state, batch)
            jax.block_until_ready(state)
            seconds[-1].append([time.perf_counter(), time.process_time()] - start)
    rows = np.array(seconds[1:])  # (rounds, objective, clock); the first round compiles
    ms, quotients = 1e3 * np.median(rows, axis=0), np.median(rows[:, 1] / rows[:, 0], axis=0)
    print(f"| step of {2 * PAIRS} texts of {LENGTH} tokens | ms | quotient | ms of processor | quotient |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| NextToken, {2 * PAIRS} rows | {ms[0, 0]:.0f} | 1 | {ms[0, 1]:.0f} | 1 |")
    print(
        f"| DPO, {PAIRS} pairs, reference cached | {ms[1, 0]:.0f} | {quotients[0]:.3f} | {ms[1, 1]:.0f} | {quotients[1]:.3f} |"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
