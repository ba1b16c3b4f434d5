"""Tokens per second of one request to a run, divided by those of llama.cpp on the run's GGUF file.

    python benchmarks/llama_cpp.py RUN --peer-python PATH [--tokens 128] [--rounds 3]

PATH is a Python with llama-cpp-python (tried with 0.3.36). The script exports RUN as F32 and Q8_0.
Then the sides answer the same prompt greedily, in turn, with as many threads as the machine has
cores. A request is a prompt of 32 tokens and its answer; the rate counts the answer's tokens.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from bigmodel_jax import config_file
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.request import Request
from bigmodel_jax.training.saved import load_weights

ROOT = Path(__file__).parents[1]
PROMPT = list(range(1000, 1032))
PEER = """
import sys, time
from llama_cpp import Llama
path, threads, num = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
prompt = [int(token) for token in sys.argv[4].split(",")]
model = Llama(path, n_ctx=256, n_threads=threads, n_threads_batch=threads, n_batch=len(prompt), verbose=False)
for _ in sys.stdin:
    model.reset()
    began, got = time.perf_counter(), 0
    for token in model.generate(prompt, temp=0.0, reset=True):
        got += 1
        if got == num:
            break
    print(num / (time.perf_counter() - began), flush=True)
"""


def ours(run: str, num: int):
    """A function that answers the prompt once and returns tokens per second."""
    config = config_file.load(run)
    mesh = sharding.make_mesh(sharding.ParallelConfig(data=1), jax.devices()[:1])
    weights, _ = load_weights(config, Path(run), mesh)
    engine = Engine(config.make_model(), SampleConfig(temperature=0.0), slots=1, length=256, turns=8)
    engine.load(weights)

    def once() -> float:
        began, got = time.perf_counter(), 0
        engine.submit(Request(PROMPT, num))
        while engine.num_unfinished:
            got += len(engine.step())
        assert got == num
        return num / (time.perf_counter() - began)

    return once


def exported(run: str, folder: Path, kind: str) -> Path:
    """Exports the run as a GGUF file of this kind, and returns its path."""
    command = [sys.executable, str(ROOT / "launch.py"), "export", run, str(folder / kind), "--format", "gguf"]
    subprocess.run([*command, "--kind", kind], check=True, stdout=subprocess.DEVNULL)
    return next((folder / kind).glob("*.gguf"))


def peer(python: str, path: Path, num: int):
    """Like `ours` for llama.cpp, in a process that keeps its model loaded."""
    prompt = ",".join(map(str, PROMPT))
    command = [python, "-c", PEER, str(path), str(os.cpu_count()), str(num), prompt]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def once() -> float:
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {"bigmodel_jax": ours(args.run, args.tokens)}
        for kind in ("F32", "Q8_0"):
            path = exported(args.run, Path(folder), kind)
            sides[f"llama.cpp, {kind}"] = peer(args.peer_python, path, args.tokens)
        for once in sides.values():
            once()
        rates = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, once in sides.items():
                rates[name].append(once())
    median = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in median.items():
        print(f"{name:16} {rate:8.1f} tokens/s, ours is {median['bigmodel_jax'] / rate:.2f} of it")


if __name__ == "__main__":
    main()
