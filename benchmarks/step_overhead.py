"""What the training loop adds to the jitted step: 100 steps of `train` against 100 plain calls.

    uv run benchmarks/step_overhead.py [CONFIG]

It prints medians of means over 20 steps, as `train` logs them, the ratio over all rounds, and the
share of wall-clock time in which the loop waits for data.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console

from bigmodel_jax import config_file, runtime
from bigmodel_jax.core import sharding
from bigmodel_jax.data import make_iterator
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training.run import train
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

STEPS, ROUNDS, WINDOW = 100, 4, 20


def bare_step(config) -> list[float]:
    """Mean seconds per step over windows of calls on one batch; as in the loop, one call is always
    in flight."""
    mesh = sharding.make_mesh(config.parallel)
    state = init_state(config, mesh)
    batch = next(make_iterator(config.data, batch_size=config.train.batch_size, seed=0, mesh=mesh))
    step = make_train_step(config, mesh).lower(state, batch).compile()
    seconds, pending, last = [], None, None
    for _ in range(STEPS + 5):
        state, sums = step(state, batch)
        if pending is not None:
            jax.block_until_ready(pending)
            now = time.perf_counter()
            if last is not None:
                seconds.append(now - last)
            last = now
        pending = sums
    seconds = seconds[-STEPS:]
    return [statistics.mean(seconds[n - WINDOW : n]) for n in range(WINDOW, STEPS + 1, 10)]


def train_loop(config) -> tuple[list[float], float]:
    """(mean seconds per step of a real `train` from its metrics, the share spent waiting for
    data)."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", Stages(Console(quiet=True)))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if "step_seconds" in r and r["step"] > WINDOW]
    seconds = [r["step_seconds"] for r in records]
    return seconds, sum(r["data_wait_seconds"] for r in records) / sum(seconds)


def main() -> None:
    runtime.keep_memory()
    runtime.keep_programs()
    config = config_file.load(sys.argv[1] if len(sys.argv) > 1 else "configs/lm_tiny.py")
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=STEPS + 1),
        eval=dataclasses.replace(config.eval, sample=dataclasses.replace(config.eval.sample, prompt="")),
    )
    config.data.baselines()  # computed now, so that it does not run beside the steps
    bare, inside = [], []
    for i in range(ROUNDS):
        bare += (one := bare_step(config))
        steps, wait = train_loop(config)
        inside += steps
        one, steps = 1e3 * statistics.median(one), 1e3 * statistics.median(steps)
        print(f"round {i + 1}: bare {one:.1f} ms, in train {steps:.1f} ms, data wait {100 * wait:.2f} %")
    print(f"all rounds: in train / bare {statistics.median(inside) / statistics.median(bare):.3f}")


if __name__ == "__main__":
    main()
