"""The worker process of a server's plan: lower and compile one of its two programs.

It is started as `python -m bigmodel_jax.plan.serving_worker REQUEST ANSWER`, like worker.py. The
programs are the engine's own (inference/slots.py), with the shardings that the engine gives them.
"""

import collections
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.inference import compiled
from bigmodel_jax.inference.compiled import Layout
from bigmodel_jax.inference.slots import cache_dtype
from bigmodel_jax.plan import topology as topologies
from bigmodel_jax.plan.serving import Serving, abstract_slots, abstract_weights, layout_of, local_bytes, programs_of
from bigmodel_jax.plan.worker import analyse, answer_with, cache_key, compile_into


def run(request: dict) -> dict:
    """Compile the requested program, or find it in the cache under its key.

    Returns its key, the sizes of weights and cache, and what its text says.
    """
    config = config_file.from_json(request["config"])
    topology = topologies.parse(request["topology"], request["slices"])
    serving = Serving(**request["serving"])
    layout = layout_of(config, topologies.compile_devices(topology))
    begun = time.perf_counter()
    lowered, sizes = lower(config, serving, layout, request["program"])
    lower_seconds = time.perf_counter() - begun
    key = cache_key(lowered.as_text(), topology, {})
    folder = Path(request["cache"]) / key
    cached = (folder / "compiled.json").is_file()
    if not cached:
        compile_into(folder, lowered, lower_seconds)
    program: dict[str, Any] = {}
    if (folder / "hlo.txt.gz").is_file():
        program = analyse(folder, config, layout.mesh, topology, every=True)
    return {
        "program": program,
        "key": key,
        "cached": cached,
        "sizes": sizes,
        "model_flops": 0.0,
        "attention_flops": 0.0,
        "tokens": serving.slots if request["program"] == "decode" else serving.prompt_tokens,
        "mesh": dict(layout.mesh.shape),
    }


def lower(config: Config, serving: Serving, layout: Layout, program: str) -> tuple[Any, dict[str, float]]:
    """(the engine's program of this name, lowered; bytes of its arguments on one device)."""
    weights = abstract_weights(config, serving, layout)
    programs, dtype = programs_of(config, serving, layout), cache_dtype(weights)
    programs.check(dtype)
    made = compiled.jitted(programs, layout, layout.mesh, dtype)
    slots = abstract_slots(programs, dtype, made.places)
    arguments = decode_arguments(serving) if program == "decode" else prefill_arguments(serving)
    sizes = {"weights": local_bytes(weights), "cache": local_bytes(slots.cache), "rollout_cache": 0.0}
    sizes |= {f"weights of {name}": size for name, size in by_dtype(weights).items()}
    return getattr(made, program).lower(weights, slots, *arguments), sizes


def by_dtype(weights: Any) -> dict[str, float]:
    """Bytes of the weights on one device by dtype."""
    found: dict[str, float] = collections.defaultdict(float)
    for x in jax.tree.leaves(weights):
        found[str(x.dtype)] += local_bytes(x)
    return dict(found)


def decode_arguments(serving: Serving) -> tuple:
    """The arguments `keep` and `waiting` of `Programs.decode`."""
    return jax.ShapeDtypeStruct((serving.slots,), bool), jax.ShapeDtypeStruct((), bool)


def prefill_arguments(serving: Serving) -> tuple:
    """The arguments slot, tokens, segments, source and num_tokens of `Programs.prefill`."""
    one, row = ((), np.int32), ((1, serving.prompt_tokens), np.int32)
    return tuple(jax.ShapeDtypeStruct(*of) for of in (one, row, row, ((2,), np.uint32), one))


if __name__ == "__main__":
    answer_with(run, *sys.argv[1:])
