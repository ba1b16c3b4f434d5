"""Memory, step time, tokens/s and MFU of one setting of `gpu_settings.py` on this GPU.

    uv run --extra gpu python benchmarks/gpu_speed.py NAME [profile]

It prints a JSON object, with the plan's figures. With `profile` a second one follows, with the
slowest kernels of two steps. Each setting needs a process of its own, because the peak memory
covers the whole process.
"""

import collections
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from gpu_settings import FOLDER, GIB, SETTINGS, random_batch

from bigmodel_jax import runtime
from bigmodel_jax.core import params, sharding
from bigmodel_jax.report.throughput import peak_flops, step_flops, step_size
from bigmodel_jax.scaling.measure import time_windows
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

WINDOWS, STEPS = 6, 4


def kernels(text: str) -> dict[str, int]:
    """{library call: its number in the compiled program}; calls in a loop's body count once."""
    targets = re.findall(r'custom_call_target="([^"]+)"', text)
    return {name: targets.count(name) for name in sorted(set(targets))}


def longest(step, state, batch, most: int = 40) -> dict[str, float]:
    """{kernel: milliseconds} of the slowest kernels in two steps."""
    total = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(2):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        profile = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
    for plane in profile.planes:
        for line in plane.lines if "/device:" in plane.name else ():
            for event in line.events if "Stream" in line.name else ():
                total[event.name] += event.duration_ns / 1e6
    return dict(total.most_common(most)) | {"all": total.total()}


def measure(name: str, profiled: bool) -> None:
    config = SETTINGS[name]
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, batch = init_state(config, mesh), random_batch(config, mesh)
    begun = time.perf_counter()
    compiled = make_train_step(config, mesh).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - begun
    flops = step_flops(config, params.merge(state.params, state.frozen), batch)
    seconds, metrics, state = time_windows(compiled, state, batch, WINDOWS, STEPS)
    usage, median = compiled.memory_analysis(), statistics.median(seconds)
    peak, _ = peak_flops(jax.devices()[:1], config.precision.compute)
    memory = jax.devices()[0].memory_stats() or {}
    size, unit = step_size(config.data, batch)
    record = {
        "name": name,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "compile_seconds": compile_seconds,
        "analysis_gib": (usage.argument_size_in_bytes + usage.temp_size_in_bytes) / GIB,
        "peak_gib": memory.get("peak_bytes_in_use", 0) / GIB,
        "limit_gib": memory.get("bytes_limit", 0) / GIB,
        "step_ms": 1e3 * median,
        "windows_ms": [1e3 * s for s in seconds],
        unit + "_per_second": size / median,
        "mfu": flops / median / peak if peak else 0.0,
        "losses": [float(sums["loss"].compute()) for sums in metrics],
        "kernels": kernels(compiled.as_text()),
        "predicted": predicted(name),
    }
    print(json.dumps(record), flush=True)
    if profiled:
        print(json.dumps({"name": name, "kernel_ms": longest(compiled, state, batch)}), flush=True)


def predicted(name: str) -> dict:
    """The plan's figures by `gpu_settings.py`; empty if there is no plan."""
    path = FOLDER / name / "plan.json"
    if not path.is_file():
        return {}
    plan = json.loads(path.read_text())
    return {"gib": plan["memory"]["used"] / GIB, "step_ms": 1e3 * plan["step_seconds"], "mfu": plan["mfu"]}


if __name__ == "__main__":
    runtime.use_gpu_memory()
    runtime.keep_programs()
    measure(sys.argv[1], "profile" in sys.argv[2:])
