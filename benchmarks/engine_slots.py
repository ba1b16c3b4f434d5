"""The engine's tokens per second with 16 slots over those with one slot: greedy, 256 cache columns.

    python benchmarks/engine_slots.py [--slots 16] [--requests 32] [--rounds 3]

The model is SmolLM2 135M reduced to ten layers and 16,384 tokens, with random weights, which cost
as much as trained ones. The ratio is printed for wall-clock time and for the processor time of all
cores; the latter says more on a machine that other programs use.
"""

import argparse
import dataclasses
import statistics
import time

import jax

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models.llama import SMOLLM2_135M

LENGTH, PROMPT, TOKENS = 256, 16, 64
TURNS = 8


def tokens_per_second(engine: Engine, num_requests: int) -> tuple[float, float]:
    """(tokens per second of wall-clock time, tokens per second of processor time)."""
    for nth in range(num_requests):
        engine.submit(Request([1 + nth] * PROMPT, TOKENS, nth=nth))
    began, computing, num = time.perf_counter(), time.process_time(), 0
    while engine.num_unfinished:
        num += len(engine.step())
    assert num == num_requests * TOKENS
    return num / (time.perf_counter() - began), num / (time.process_time() - computing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("slots", 16), ("requests", 32), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = dataclasses.replace(SMOLLM2_135M, num_layers=10, vocab_size=16_384).make()
    weights = jax.jit(lambda: params.init(model.spec, jax.random.key(0)))()
    engines = {}
    for slots in (1, args.slots):
        engine = Engine(model, SampleConfig(temperature=0), slots=slots, length=LENGTH, turns=TURNS)
        engine.load(weights)
        tokens_per_second(engine, 1)  # compiles
        engines[slots] = engine
    # Both engines take turns, so that other load on the machine affects both.
    found = {slots: [] for slots in engines}
    for _ in range(args.rounds):
        for slots, engine in engines.items():
            found[slots].append(tokens_per_second(engine, max(args.requests * slots // args.slots, 2)))
    for which, unit in enumerate(("second", "second of computing, all cores")):
        one, many = (statistics.median(speed[which] for speed in found[slots]) for slots in (1, args.slots))
        print(f"tokens per {unit}: one slot {one:,.0f}, {args.slots} slots {many:,.0f}, ratio {many / one:.2f}")


if __name__ == "__main__":
    main()
