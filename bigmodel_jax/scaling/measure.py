"""Measures one point of a scaling benchmark in child processes.

A point needs its own number of devices, which JAX fixes at start-up, so the parent never starts
JAX. The child times windows of steps on one batch that stays on the device. The device is idle when
the clock of a window starts and when it stops. The first window is a warm-up and does not count.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bigmodel_jax.scaling.points import Point


def measure_peak(dtype: str) -> dict[str, Any]:
    """{"flops", "source", "shared"}: the peak of one device, and whether virtual devices share it.

    All points use this one figure: a peak measured while more virtual devices exist would be lower,
    and would raise the MFU of that point. Raises ValueError, one line, if the process fails.
    """
    try:
        return _run({"peak": dtype}, devices=1, processes=1)
    except RuntimeError as error:
        raise ValueError(f"the peak of a device could not be measured: {error}") from error


def measure(point: Point, *, windows: int, steps: int, peak: dict[str, Any]) -> dict[str, Any]:
    """The record of a point; peak: from `measure_peak`.

    Raises RuntimeError, one line, on failure.
    """
    from bigmodel_jax import config_file

    job = {
        "config": config_file.to_json(point.config),
        "devices": point.devices,
        "processes": point.processes,
        "coordinator": f"127.0.0.1:{_free_port()}",
        "windows": windows,
        "steps": steps,
        "peak": peak,
    }
    try:
        return _run(job, point.devices, point.processes)
    except RuntimeError as error:
        raise RuntimeError(f"{point.layout} on {point.devices} devices: {error}") from error


def _run(job: dict[str, Any], devices: int, processes: int) -> dict[str, Any]:
    """The record that process 0 of a job writes.

    Raises RuntimeError with the last line of the first process that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        errors = _wait([_start(file, number, devices // processes) for number in range(processes)])
        record = file.with_suffix(".record")
        if not record.is_file():
            raise RuntimeError((errors.strip().splitlines() or ["no message"])[-1])
        return json.loads(record.read_text())


def _start(job: Path, number: int, devices: int) -> subprocess.Popen:
    """Starts a child that measures. On a CPU it sees only its share of the virtual devices."""
    # JAX reads the number of virtual devices only at its start.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "bigmodel_jax.scaling.measure", str(job), str(number)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _wait(children: list[subprocess.Popen]) -> str:
    """Waits for all children, and returns the stderr of the first that failed; then all are
    killed."""
    failed = ""
    try:
        while any(child.poll() is None for child in children):
            # One failure ends the wait, because the other processes would wait for the failed one
            # for ever.
            if any(child.poll() for child in children):
                break
            time.sleep(0.05)
        failed = next((child.stderr.read() for child in children if child.poll()), "")
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stderr.close()
    return failed


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---------------------------------------------------------------------------------------- the child


def child(job_file: Path, number: int) -> None:
    """Runs in a child: measures the job, and process 0 writes the record."""
    from bigmodel_jax.core import trust

    trust.allow()  # the parent has loaded this config already
    job = json.loads(job_file.read_text())
    record = peak_of(job["peak"]) if "config" not in job else _record(job, number)
    if number == 0:
        unfinished = job_file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(record))
        # The rename makes the record appear complete or not at all.
        unfinished.rename(job_file.with_suffix(".record"))


def peak_of(dtype: str) -> dict[str, Any]:
    """The peak FLOP/s of one device in this process, for `measure_peak`."""
    import jax

    from bigmodel_jax.report.throughput import peak_flops

    flops, source = peak_flops(jax.devices()[:1], dtype)
    return {"flops": flops, "source": source, "shared": jax.devices()[0].platform == "cpu"}


def peak_of_all(peak: dict[str, Any], num_devices: int) -> float:
    """The FLOP/s of all devices together. Virtual devices share one machine."""
    return peak["flops"] * (1 if peak["shared"] else num_devices)


def _record(job: dict[str, Any], number: int) -> dict[str, Any]:
    import jax

    from bigmodel_jax import config_file, runtime

    if job["processes"] > 1:
        # JAX would otherwise look for the processes of a cluster, such as Slurm's.
        jax.distributed.initialize(job["coordinator"], job["processes"], number, cluster_detection_method="deactivate")
    runtime.keep_programs()
    config = config_file.from_json(job["config"])
    return record_of(config, job["devices"], job["windows"], job["steps"], job["peak"])


def record_of(config, num_devices: int, windows: int, steps: int, peak: dict[str, Any]) -> dict[str, Any]:
    """Compiles the step for the first `num_devices` devices, times it, and reads its
    collectives."""
    import jax

    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.core import params, sharding
    from bigmodel_jax.data import make_iterator
    from bigmodel_jax.plan.program.hlo import by_axes, collectives
    from bigmodel_jax.report.environment import environment
    from bigmodel_jax.report.throughput import step_flops, step_size
    from bigmodel_jax.training import reference
    from bigmodel_jax.training.state import init_constants, init_state
    from bigmodel_jax.training.step import make_train_step

    devices = jax.devices()[:num_devices]
    if len(devices) < num_devices:
        raise ValueError(f"--devices {num_devices}: only {len(devices)} are present")
    validate(config, num_devices)
    mesh = sharding.make_mesh(config.parallel, devices)
    state, constants = init_state(config, mesh), init_constants(config, mesh)
    layout = {"mesh": mesh, "rules": config.parallel.rules}
    # One batch stays on the device, so that reading data is not measured.
    batch = next(
        make_iterator(reference.blank(config), batch_size=config.train.batch_size, seed=config.train.seed, **layout)
    )
    start = time.perf_counter()
    compiled = make_train_step(config, mesh).lower(state, batch, constants).compile()
    compile_seconds = time.perf_counter() - start
    seconds, *_ = time_windows(lambda *args: compiled(*args, constants), state, batch, windows, steps)
    usage, median = compiled.memory_analysis(), statistics.median(seconds)
    size, unit = step_size(config.data, batch)
    flops = step_flops(config, params.abstract(config.make_model().spec), batch)
    whole = peak_of_all(peak, num_devices)
    return {
        "device_kind": devices[0].device_kind,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch_size": config.train.batch_size,
        "unit": unit,
        "step_seconds": median,
        "step_seconds_p95": _percentile(seconds, 0.95),
        "windows": seconds,
        "tokens_per_second": size / median,
        "mfu": flops / (median * whole),
        "peak_flops": whole,
        "peak_source": peak["source"],
        "memory_bytes": usage.argument_size_in_bytes + usage.temp_size_in_bytes,
        "bytes_by_axis": {
            " x ".join(axes): n for axes, n in by_axes(collectives(compiled.as_text(), mesh)).items() if n
        },
        "compile_seconds": compile_seconds,
        "environment": environment(),
    }


def time_windows(step, state, batch, windows: int, steps: int) -> tuple[list[float], list[dict], Any]:
    """(seconds per step of each window, metrics after each window, final state).

    One more window runs first, as a warm-up.
    """
    import jax

    seconds, metrics = [], []
    for _ in range(windows + 1):
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))
        seconds.append((time.perf_counter() - start) / steps)
        metrics.append(sums)
    return seconds[1:], metrics[1:], state


def _percentile(values: list[float], share: float) -> float:
    """The quantile at `share`: the smallest value that is at least as large as this share of
    all."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


if __name__ == "__main__":
    try:
        child(Path(sys.argv[1]), int(sys.argv[2]))
    except (ValueError, OSError) as error:
        sys.exit(" ".join(str(error).split()))
