"""Compile a config's train step for absent devices, in a separate process, and cache the result.

The TPU and GPU runtimes print messages, write logs and lock files, and query a metadata server. A
separate process hides all of that from the user. A compiler that crashes ends only that process.
"""

import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.data import cache
from bigmodel_jax.plan.chips import GIB
from bigmodel_jax.plan.topology import Topology

FORMAT = 2  # raise this number when the files that the worker writes into the cache change


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler reports about the program of one device.

    folder: where the cache keeps the compiled program. cached: whether it was there already.
    seconds: wall time of this call, cached or not. lower_seconds, compile_seconds, cpu_seconds:
    time that lowering and compiling took when the program entered the cache.
    peak_rss: bytes of host memory that the compiler needed.
    refused: the compiler's message where the program does not fit, else empty.
    memory: bytes by name, from `compiled.memory_analysis()`; empty where refused.
    sizes: bytes on one device by kind of array (worker.sizes).
    model_flops, attention_flops: useful FLOPs of one step on all devices.
    tokens: tokens of one step. mesh: size of each mesh axis.
    program: what worker.analyse reads from the program's text; empty where refused.
    """

    folder: Path
    cached: bool
    seconds: float
    lower_seconds: float
    compile_seconds: float
    cpu_seconds: float
    peak_rss: float
    refused: str
    memory: dict[str, float]
    sizes: dict[str, float]
    model_flops: float
    attention_flops: float
    tokens: int
    mesh: dict[str, int]
    program: dict[str, Any]


def used_bytes(compiled: Compiled) -> float:
    """Bytes of one device's memory that the program and the decode cache of its rollouts need.

    The compiler gives two accounts, and the larger one counts. The first sums all allocations,
    including gaps between buffers. The second is the peak of live buffers. The peak also includes
    on-chip memory, 128 MiB on a TPU, which is therefore subtracted.
    """
    if not compiled.memory:
        return 0.0
    m = compiled.memory
    allocated = m["argument"] + m["temp"] + m["output"] - m["alias"]
    return max(m["peak_memory"] - 2**27, allocated) + m["generated_code"] + compiled.sizes["rollout_cache"]


def stated_bytes(refused: str, arguments: float) -> float:
    """Bytes of one device's memory that a refused program needs, at least those of its arguments.

    refused: the compiler's message. libtpu states the bytes there alone. It calls them temporaries,
    but a program that only reads 17 GiB of arguments is refused with 17 GiB of temporaries.
    """
    stated = re.search(r"temporaries \(([\d.]+)G\)", refused)
    return max(arguments, float(stated[1]) * GIB if stated else 0.0)


def compile_step(config: Config, topology: Topology) -> Compiled:
    """Compile the train step of `config` for `topology`, or read it from the cache.

    Raises ValueError with a one-line message for a config that cannot be compiled.
    """
    root().mkdir(parents=True, exist_ok=True)
    request = {
        "config": config_file.to_json(config),
        "topology": topology.name,
        "slices": topology.slices,
        "cache": str(root()),
    }
    begun = time.perf_counter()
    answer = ask("bigmodel_jax.plan.worker", request, topology.chip.platform)
    if "mistake" in answer:
        raise ValueError(answer["mistake"])
    return read(answer, time.perf_counter() - begun)


def root() -> Path:
    """The cache folder for compiled programs."""
    return cache.root() / f"plan-{FORMAT}"


def read(answer: dict, seconds: float) -> Compiled:
    """Combine a worker's answer with the cached report on its program."""
    folder = root() / answer.pop("key")
    kept = json.loads((folder / "compiled.json").read_text())
    return Compiled(folder=folder, seconds=seconds, memory=kept.pop("memory", {}), **kept, **answer)


def compile_all(jobs: Iterable[tuple[Any, Config]], topology: Topology, workers: int = 0) -> Iterator[tuple]:
    """Compile `jobs`, which are (key, config) pairs, in parallel.

    Yields (key, Compiled or ValueError) as each job ends. `workers` is the number of processes at
    once; 0 means one per core.
    """
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        pending = {pool.submit(compile_step, config, topology): key for key, config in jobs}
        try:
            for done in concurrent.futures.as_completed(pending):
                error = done.exception()
                # Any other exception is a bug, and not a property of the config.
                if error is not None and not isinstance(error, ValueError):
                    raise error
                yield pending[done], error or done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def environment(platform: str, folder: str) -> dict[str, str]:
    """Environment variables of a worker: no network, no shared files, no printed logs."""
    env = os.environ | {
        "TMPDIR": folder,  # where the runtimes put lock files and logs
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
    }
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_NUM_CPU_DEVICES"):  # they describe this machine
        env.pop(name, None)
    if platform == "tpu":
        # The runtime needs some legal accelerator type. The topology decides what is compiled for.
        tpu = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
        return env | tpu | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    # XLA sorts on GPUs with CUB, which asks the device for its scratch size. Without a device, XLA
    # must use its own sort.
    cuda = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": "--xla_gpu_enable_cub_radix_sort=false"}
    return env | cuda | {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "-1"}


def ask(worker: str, request: dict, platform: str) -> dict:
    """Run a worker module of this package and return its answer.

    Raises ValueError with the worker's last words where it died.
    """
    with tempfile.TemporaryDirectory(prefix="bigmodel-plan-") as folder:
        paths = [Path(folder) / name for name in ("request.json", "answer.json", "output.txt")]
        paths[0].write_text(json.dumps(request))
        command = [sys.executable, "-m", worker, str(paths[0]), str(paths[1])]
        with open(paths[2], "wb") as output:
            process = subprocess.Popen(
                command, env=environment(platform, folder), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                code = process.wait()
            finally:
                process.kill()  # kill, not terminate: libtpu dumps its stack when it is terminated
        if code or not paths[1].is_file():
            kept = Path(request["cache"]) / "last_failure.txt"
            raise ValueError(f"the compiler's process ended with code {code}: {_last_words(paths[2], kept)}")
        return json.loads(paths[1].read_text())


def _last_words(log: Path, kept: Path) -> str:
    """The line of `log` that names the failure: a failed check or an exception.

    The whole log is copied to `kept`.
    """
    text = log.read_text(errors="replace")
    kept.write_text(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"Check failed|^F\d{4}|^[\w.]*(Error|Exception)\b", line)]
    return f"{(telling or lines or ['it said nothing'])[-1][:300]} (all it said: {kept})"
