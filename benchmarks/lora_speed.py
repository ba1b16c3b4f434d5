"""Tokens per second of a LoRA step of SmolLM2-135M beside transformers with PEFT, in alternation.

    uv run benchmarks/lora_speed.py /path/to/python-with-torch [--rounds 5] [--steps 2]
        [--sides ours,unrolled,full,eager,compile]

LoRA has rank 16 on all products of the layers; float32, rows of 256 random tokens, AdamW. The
programs run side by side and take turns, so that other load on the machine affects all: our LoRA
step, the same with `model.compute.unroll`, our full step, and PEFT with torch eager and with
torch.compile. It prints medians, our ratios to the faster torch, and the ratio of our LoRA step's
time to our full step's. All are given for wall-clock time and for the processor time of all cores,
which says more on a machine that other programs use. `--profile FOLDER` instead runs only our side
and prints its slowest operations.
"""

import argparse
import collections
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from torch_peer import start

from bigmodel_jax import config_file, runtime
from bigmodel_jax.config import Config
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.adapters import AdapterConfig, Lora
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step

CONFIG = Path(__file__).parents[1] / "configs" / "sft_smollm2.py"
ROWS, LENGTH, RANK = 2, 256, 16
NAMES = {
    "ours": "ours, LoRA",
    "unrolled": "ours, unrolled",
    "full": "ours, full step",
    "eager": "PEFT, torch eager",
    "compile": "PEFT, torch.compile",
}
OURS = ("ours", "unrolled", "full")


def config_of(side: str) -> Config:
    config = config_file.load(CONFIG)
    train = dataclasses.replace(config.train, steps=1000, epochs=None, batch_size=ROWS, init_from="")
    adapters = AdapterConfig() if side == "full" else Lora(targets="layers/.*", rank=RANK, alpha=2 * RANK)
    compute = dataclasses.replace(config.model.compute, unroll=side == "unrolled")
    model = dataclasses.replace(config.model, compute=compute)
    return dataclasses.replace(config, model=model, train=train, parallel=ParallelConfig(data=1), adapters=adapters)


def batches(vocab_size: int) -> list[dict]:
    rng, one = np.random.default_rng(0), np.ones((ROWS, LENGTH), np.int32)
    where = {"segment_ids": one, "positions": np.cumsum(one, axis=1).astype(np.int32) - 1}
    tokens = rng.integers(0, vocab_size, (8, ROWS, LENGTH + 1)).astype(np.int32)
    return [
        jax.device_put({"tokens": t[:, :-1], "targets": t[:, 1:], "weights": one.astype(np.float32)} | where)
        for t in tokens
    ]


class Ours:
    """Our train step, compiled and warmed up."""

    def __init__(self, side: str):
        config = config_of(side)
        mesh = sharding.make_mesh(config.parallel)
        self.state, self.constants = init_state(config, mesh), init_constants(config, mesh)
        self.data = batches(config.model.vocab_size)
        self.step = make_train_step(config, mesh).lower(self.state, self.data[0], self.constants).compile()
        self.run(3)

    def run(self, steps: int) -> tuple[float, float, float]:
        """(seconds, processor seconds of all cores, last loss) of so many steps."""
        begin, computing = time.perf_counter(), time.process_time()
        for i in range(steps):
            self.state, sums = self.step(self.state, self.data[i % 8], self.constants)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin, time.process_time() - computing, float(sums["loss"].compute())


def serve(side: str) -> None:
    """Runs our side with the protocol of torch_lora.py."""
    runtime.keep_programs()
    ours = Ours(side)
    print("ready", sum(x.size for x in jax.tree.leaves(ours.state.params)), flush=True)
    for line in sys.stdin:
        print(*ours.run(int(line)), flush=True)


def profile(folder: str, most: int = 25) -> None:
    """Prints the summed times of our step's operations; nested operations count more than once."""
    runtime.keep_programs()
    ours, options = Ours("ours"), jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        seconds = ours.run(2)[0]
    found = collections.Counter()
    for path in Path(folder).rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                name = dict(event.stats).get("hlo_op")
                if name:
                    found[name] += event.duration_ns / 2e6
    print(f"{500 * seconds:.0f} ms a step; sums over threads in ms a step:")
    for name, ms in found.most_common(most):
        print(f"{ms:10.1f}  {name}")


def command(side: str, python: str) -> tuple[list[str], dict[str, str]]:
    if side in OURS:
        return [sys.executable, __file__, "--serve", side], runtime.ARENA
    shape = dataclasses.asdict(config_of("ours").model) | {"rank": RANK, "batch_size": ROWS, "seq_len": LENGTH}
    return [python, str(Path(__file__).with_name("torch_lora.py")), json.dumps(shape), side, "lora"], {}


def alternate(programs: dict[str, subprocess.Popen], rounds: int, steps: int) -> list[dict[str, list[float]]]:
    """[seconds per step, processor seconds per step], each {program: one value per round}."""
    seconds, computing = {name: [] for name in programs}, {name: [] for name in programs}
    for _ in range(rounds):
        for name, process in programs.items():
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            wall, own, _ = map(float, process.stdout.readline().split())
            seconds[name].append(wall / steps)
            computing[name].append(own / steps)
    return [seconds, computing]


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> str:
    each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--sides", default=",".join(NAMES))
    parser.add_argument("--serve", choices=OURS)
    parser.add_argument("--profile", metavar="FOLDER")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if args.profile:
        return profile(args.profile)
    started = {side: start(*command(side, args.python)) for side in args.sides.split(",")}
    found = alternate({side: process for side, (process, _) in started.items()}, args.rounds, args.steps)
    for process, _ in started.values():
        process.stdin.close()
    trained = {side: count for side, (_, count) in started.items()}
    for what, seconds in zip(("time", "time of computing, all cores"), found, strict=True):
        print(f"{what}:")
        show(seconds, trained)


def show(seconds: dict[str, list[float]], trained: dict[str, int]) -> None:
    for side, each in seconds.items():
        middle = statistics.median(each)
        speed = f"{1e3 * middle:8.0f} ms/step {ROWS * LENGTH / middle:8.1f} tokens/s"
        print(f"  {NAMES[side]:22s} {speed}  {trained[side]:,} trained")
    torch = [side for side in ("eager", "compile") if side in seconds]
    for side in ("ours", "unrolled"):
        if torch and side in seconds:
            best = min(torch, key=lambda side: statistics.median(seconds[side]))
            print(f"  tokens/s, {NAMES[side]} / {NAMES[best]}: {ratio(seconds, best, side)}")
    if {"ours", "full"} <= seconds.keys():
        print(f"  time, ours / our full step: {ratio(seconds, 'ours', 'full')}")


if __name__ == "__main__":
    main()
