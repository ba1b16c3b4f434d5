"""Joins a job of several processes through `jax.distributed`, and leaves it."""

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

# JAX is imported inside functions, because the verbs import this file only for its options.

PACKAGE = Path(__file__).parents[1]
SHUTDOWN_SECONDS = 1800  # how long all wait at the end for process 0, which writes the report
HEARTBEAT_SECONDS = 24 * 3600  # JAX aborts at a missed heartbeat; peers.py finds a hung process long before that
# Variables of the environment that show a job of several processes.
SIGNS = ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "JOBSET_COORDINATOR", "TPU_WORKER_HOSTNAMES")


def hush(options: ClusterConfig) -> None:
    """Silences JAX's service if this looks like a job; called before JAX is imported.

    The service logs pages for each broken connection, and the watch reports it in one line.
    """
    if options != ClusterConfig() or any(name in os.environ for name in SIGNS):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def expected(options: ClusterConfig) -> bool:
    """Whether this may be one of several processes; works before JAX can be asked."""
    hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return hosts or options != ClusterConfig() or any(name in os.environ for name in SIGNS[:3])


def join(options: ClusterConfig) -> bool:
    """Joins this process's job before the first use of a device. Returns False if it is alone.

    From here on the processes watch each other (peers.py). Raises peers.JobLost, with the address
    and the seconds waited, if the job does not come together.
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
        # The other processes learn port and token from JAX's coordination service.
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
    """Returns if every process of the job has the same config, folder and versions.

    Otherwise all processes end with one line that names the difference.
    """
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
    """Ends a job that went well: every process waits for all others."""
    if peers.active():
        import jax

        peers.say_goodbye()
        jax.distributed.shutdown()


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _reach(place: Place, timeout: int) -> None:
    """Waits until process 0 listens. JAX's own wait would name neither the address nor the
    reason."""
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
    except RuntimeError as error:  # JaxRuntimeError is a subclass
        atexit.unregister(_clean_up())  # it would wait for the missing processes, and raise
        reason = "" if "bad_cast" in str(error) else f": {' '.join(str(error).split())[:300]}"
        raise peers.JobLost(
            f"cluster: the {place.num_processes} processes did not all join at {place.coordinator} in {timeout} s{reason}"
        ) from error


@contextlib.contextmanager
def _no_abort():
    """Prevents JAX's client, made in this block, from aborting with pages of text when process 0
    dies.

    A client with a callback calls it instead of aborting. In jaxlib 0.12 the callback's argument
    has no Python form, so C++'s `terminate` is called. It waits until the watch ends the process
    with a message that names the dead process.
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
    """Makes C++'s `terminate` call `wait` first. Does nothing without libstdc++."""
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


_kept: list = []  # the handler and its predecessor; C++ keeps no reference to them


def _clean_up() -> Callable:
    from jax._src import api

    return api.clean_up


def _be_silent() -> None:
    """Stops this process from printing and logging, which only process 0 does."""
    logger = logging.getLogger("bigmodel_jax")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    _hide_c_output()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _hide_c_output() -> None:
    """Hides what C code prints on stdout, such as Gloo's line per rank. Python's output stays."""
    # Python's buffer must be empty before file descriptor 1 is replaced.
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    sys.stdout = kept
