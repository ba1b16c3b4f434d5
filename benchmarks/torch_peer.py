"""Tokens per second of lm_tiny's train step beside the same model in PyTorch, in alternation.

    uv run benchmarks/torch_peer.py /path/to/python-with-torch [ROUNDS]

Five programs run side by side and take turns, so that other load on the machine affects all: ours
with the CPU forms of nn/cpu.py, ours without them, torch eager, and torch.compile with both
allocators. It prints medians and the ratio to the fastest torch.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from bigmodel_jax import config_file, runtime
from bigmodel_jax.core import sharding
from bigmodel_jax.nn import cpu
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

CONFIG, STEPS = "configs/lm_tiny.py", 20


def shape() -> dict:
    config = config_file.load(CONFIG)
    return dataclasses.asdict(config.model) | {"seq_len": config.data.seq_len, "batch_size": config.train.batch_size}


def serve(mode: str) -> None:
    """Runs our side with the protocol of torch_decoder.py."""
    if mode == "plain":
        cpu.active = lambda: False
    runtime.keep_programs()
    c, config = shape(), config_file.load(CONFIG)
    mesh = sharding.make_mesh(config.parallel)
    state, step = init_state(config, mesh), None
    rng = np.random.default_rng(0)

    def batch():
        tokens = rng.integers(0, c["vocab_size"], (c["batch_size"], c["seq_len"] + 1)).astype(np.int32)
        one = np.ones((c["batch_size"], c["seq_len"]), np.int32)
        where = {"segment_ids": one, "positions": np.cumsum(one, axis=1).astype(np.int32) - 1}
        return jax.device_put(
            {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": one.astype(np.float32)} | where
        )

    data = [batch() for _ in range(8)]
    step = make_train_step(config, mesh).lower(state, data[0]).compile()
    for i in range(5):
        state, sums = step(state, data[i])
    jax.block_until_ready(state)
    print("ready", sum(x.size for x in jax.tree.leaves(state.params)), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for i in range(int(line)):
            state, sums = step(state, data[i % 8])
        jax.block_until_ready(state)
        print(time.perf_counter() - start, float(sums["loss"].compute()), flush=True)


def start(command: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    word, count = process.stdout.readline().split()
    assert word == "ready"
    return process, int(count)


def main() -> None:
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
        return
    torch_python, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    peer, ours = (
        [torch_python, str(Path(__file__).with_name("torch_decoder.py")), json.dumps(shape())],
        [
            sys.executable,
            __file__,
            "--serve",
        ],
    )
    programs = {
        "ours": start([*ours, "fast"], runtime.ARENA),
        "ours, plain forms, plain malloc": start([*ours, "plain"], {}),
        "torch eager": start([*peer, "eager"], {}),
        "torch.compile": start([*peer, "compile"], {}),
        "torch.compile, same malloc": start([*peer, "compile"], runtime.ARENA),
    }
    assert len({count for _, count in programs.values()}) == 1, "the models differ in size"
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (process, _) in programs.items():
            process.stdin.write(f"{STEPS}\n")
            process.stdin.flush()
            seconds[name].append(float(process.stdout.readline().split()[0]) / STEPS)
    for process, _ in programs.values():
        process.stdin.close()
    c = shape()
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    best = min((name for name in programs if name.startswith("torch")), key=medians.get)
    print(
        f"{next(iter(programs.values()))[1]:,} parameters, {c['batch_size']} x {c['seq_len']} tokens, {rounds} rounds"
    )
    for name, median in medians.items():
        tokens = c["batch_size"] * c["seq_len"] / median
        ratio = statistics.median(b / a for a, b in zip(seconds[name], seconds[best], strict=True))
        print(f"{name:34s} {1e3 * median:7.1f} ms/step {tokens:8,.0f} tokens/s   x{ratio:.2f} of {best}")


if __name__ == "__main__":
    main()
