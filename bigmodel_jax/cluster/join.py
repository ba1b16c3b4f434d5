"""Joining a job of several processes through `jax.distributed`, and leaving it."""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bigmodel_jax import runtime
from bigmodel_jax.cluster import peers
from bigmodel_jax.cluster.place import ClusterConfig, Place, find
from bigmodel_jax.core import mirror

# JAX is imported inside the functions: the verbs import this file for its options alone.

PACKAGE = Path(__file__).parents[1]
SHUTDOWN_SECONDS = 1800  # at the end all wait for the first process, which writes the report
HEARTBEAT_SECONDS = 24 * 3600  # JAX aborts where it misses one; the watch (peers.py) names who hangs, long before
SIGNS = ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "JOBSET_COORDINATOR", "TPU_WORKER_HOSTNAMES")


def hush(options: ClusterConfig) -> None:
    """Before JAX is imported in what looks like a job: its service logs each broken connection as an error, in pages,
    where the watch says it once."""
    if options != ClusterConfig() or any(name in os.environ for name in SIGNS):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def expected(options: ClusterConfig) -> bool:
    """Whether this may be one process of several, before JAX can be asked: which of them speaks is not known yet."""
    hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return hosts or options != ClusterConfig() or any(name in os.environ for name in SIGNS[:3])


def join(options: ClusterConfig) -> bool:
    """Joins the job that this process belongs to, before the first use of a device; False for a process that is alone.

    From here on the processes watch over each other (peers.py). peers.JobLost names the address and the seconds
    waited where the job does not come together.
    """
    place = find(options)
    if place is None:
        return False
    began = time.monotonic()
    if place.process_id:
        _reach(place, options.timeout)
    _initialize(place, max(1, int(options.timeout - (time.monotonic() - began))))
    from jax._src import distributed

    store, key = distributed.global_state.client, "bigmodel_jax/peers"
    if place.process_id == 0:
        listener, token = peers.listen(), secrets.token_hex(8)
        store.key_value_set(key, f"{listener.getsockname()[1]} {token}")
        peers.lead(listener, token, place.num_processes, options.timeout)
    else:
        port, token = store.blocking_key_value_get(key, options.timeout * 1000).split()
        peers.follow(_host(place.coordinator), int(port), token, place.process_id, options.timeout)
    if place.process_id:
        _be_silent()
    elif runtime.on_cpu():
        _hide_c_output()
    return True


def agree(config, run_dir: Path, timeout: int) -> None:
    """Returns when every process of the job has the same config, folder and versions; otherwise all end, with one line
    that names what differs."""
    if not peers.active():
        return
    from bigmodel_jax.config import flat
    from bigmodel_jax.report.environment import versions

    source = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        source.update(path.read_bytes())
    facts = {"python": platform.python_version(), "bigmodel_jax's source": source.hexdigest()[:12]}
    facts["run_dir"] = mirror.address(run_dir)
    peers.agree(versions() | facts | flat(config), timeout)


def leave() -> None:
    """The end of a job in which all went well: every process waits until all are here."""
    if peers.active():
        import jax

        peers.say_goodbye()
        jax.distributed.shutdown()


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _reach(place: Place, timeout: int) -> None:
    """Waits until process 0 listens: JAX's own wait names neither the address nor the reason."""
    host, port = _host(place.coordinator), int(place.coordinator.rpartition(":")[2])
    end, reason = time.monotonic() + timeout, "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    raise peers.JobLost(
        f"cluster: the coordinator {place.coordinator} could not be reached in {timeout} s: {reason} "
        f"(process {place.process_id} of {place.num_processes}, by {place.source})"
    )


def _initialize(place: Place, timeout: int) -> None:
    import jax

    local = None if place.local_devices is None else list(place.local_devices)
    try:
        with _no_abort():
            jax.distributed.initialize(
                place.coordinator, place.num_processes, place.process_id, local,
                cluster_detection_method="deactivate", initialization_timeout=timeout,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )  # fmt: skip
    except RuntimeError as error:  # JaxRuntimeError is one
        atexit.unregister(_clean_up())  # it would wait for those that did not come, and raise
        reason = "" if "bad_cast" in str(error) else f": {' '.join(str(error).split())[:300]}"
        raise peers.JobLost(
            f"cluster: the {place.num_processes} processes did not all join at {place.coordinator} in {timeout} s{reason}"
        ) from error


@contextlib.contextmanager
def _no_abort():
    """While JAX makes its client, takes from it the abort, with pages of text, when process 0 dies.

    A client with a callback calls it instead. Its argument has no Python form (jaxlib 0.12), which ends in C++'s
    `terminate`: there the process waits until the watch ends it, which has the name of the dead process.
    """
    from jax._src.lib import _jax

    make = _jax.get_distributed_runtime_client
    _jax.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=_wait_for_the_watch)
    _at_terminate(_wait_for_the_watch)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = make


def _wait_for_the_watch(*_) -> None:
    time.sleep(30)


def _at_terminate(wait: Callable[[], None]) -> None:
    """Has C++'s `terminate` call `wait` before what it does otherwise; nothing where the library is another one."""
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
    except (OSError, AttributeError):
        return
    kind = ctypes.CFUNCTYPE(None)
    set_terminate.restype, set_terminate.argtypes = kind, [kind]

    def handler() -> None:
        wait()
        _kept[1]()

    _kept[:] = [kind(handler)]
    _kept.append(set_terminate(_kept[0]))


_kept: list = []  # the handler and the one before it: C++ holds no reference


def _clean_up() -> Callable:
    from jax._src import api

    return api.clean_up


def _be_silent() -> None:
    """Process 0 alone prints and logs."""
    logger = logging.getLogger("bigmodel_jax")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    _hide_c_output()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _hide_c_output() -> None:
    """Gloo prints a line per rank on the standard output, from C; Python's own output goes on where it went."""
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    sys.stdout = kept
