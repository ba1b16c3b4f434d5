"""The train step of a config compiled for a machine that is not there, in a process of its own, and kept.

The process keeps what the TPU and GPU runtimes print, their lock file, their logs and their look-ups of a metadata
server away from the user; and a program that does not fit, or a compiler that dies, takes nothing else with it.
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
from bigmodel_jax.plan.topology import Topology

FORMAT = 1  # raise it when what the worker leaves in the cache changes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device's program.

    memory: bytes by name, as `compiled.memory_analysis()` has them; empty where the program was refused. refused: the
    compiler's own words where the program does not fit. sizes: bytes on one device by kind (worker.sizes).
    model_flops, attention_flops: useful FLOPs of a step on all devices. tokens: of a step. mesh: sizes of the axes.
    program: what its text says (worker.analyse), empty where it was refused. seconds: wall time of this call, cached or not.
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
    """Bytes of a device's memory that the program needs, and the decode cache of rollouts beside it.

    The larger of the compiler's two accounts: all its allocations, in which gaps between buffers count, and what lives
    at once at its worst moment. The latter counts on-chip memory as well, 128 MiB of it on a TPU.
    """
    if not compiled.memory:
        return 0.0
    m = compiled.memory
    allocated = m["argument"] + m["temp"] + m["output"] - m["alias"]
    return max(m["peak_memory"] - 2**27, allocated) + m["generated_code"] + compiled.sizes["rollout_cache"]


def compile_step(config: Config, topology: Topology) -> Compiled:
    """The step of `config` for `topology`; from the cache where the same program was compiled before.

    ValueError, one line, for a config that cannot be compiled.
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
    """Where programs are kept."""
    return cache.root() / f"plan-{FORMAT}"


def read(answer: dict, seconds: float) -> Compiled:
    """A worker's answer, with what is kept of its program."""
    folder = root() / answer.pop("key")
    kept = json.loads((folder / "compiled.json").read_text())
    return Compiled(folder=folder, seconds=seconds, memory=kept.pop("memory", {}), **kept, **answer)


def compile_all(jobs: Iterable[tuple[Any, Config]], topology: Topology, workers: int = 0) -> Iterator[tuple]:
    """(key, Compiled or ValueError) of each of `jobs`, as they are done; `workers` processes at once (0: one a core)."""
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        pending = {pool.submit(compile_step, config, topology): key for key, config in jobs}
        try:
            for done in concurrent.futures.as_completed(pending):
                error = done.exception()
                if error is not None and not isinstance(error, ValueError):
                    raise error
                yield pending[done], error or done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def environment(platform: str, folder: str) -> dict[str, str]:
    """The environment of a worker: nothing is asked of the network, nothing is shared, nothing is printed."""
    env = os.environ | {
        "TMPDIR": folder,  # the runtimes' lock files and logs
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
    }
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_NUM_CPU_DEVICES"):  # of this machine, not of the planned one
        env.pop(name, None)
    if platform == "tpu":
        # Any legal type does: it is not the one that is compiled for.
        tpu = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
        return env | tpu | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    # CUB, with which a GPU sorts, asks the device how much room it needs: without one there is the compiler's own sort.
    cuda = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": "--xla_gpu_enable_cub_radix_sort=false"}
    return env | cuda | {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "-1"}


def ask(worker: str, request: dict, platform: str) -> dict:
    """The answer of a worker, a module of this room; ValueError with its last line where it died."""
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
                process.kill()  # not terminate: libtpu answers that with a dump of its stack
        if code or not paths[1].is_file():
            kept = Path(request["cache"]) / "last_failure.txt"
            raise ValueError(f"the compiler's process ended with code {code}: {_last_words(paths[2], kept)}")
        return json.loads(paths[1].read_text())


def _last_words(log: Path, kept: Path) -> str:
    """The line that says what was wrong: a failed check of the compiler's, or an exception's; all of it goes to `kept`."""
    text = log.read_text(errors="replace")
    kept.write_text(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"Check failed|^F\d{4}|^[\w.]*(Error|Exception)\b", line)]
    return f"{(telling or lines or ['it said nothing'])[-1][:300]} (all it said: {kept})"
