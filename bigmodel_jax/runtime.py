"""Settings that a process needs before JAX starts: the program cache, allocator and GPU memory."""

import contextlib
import glob
import os
import sys
import warnings
from pathlib import Path

# A step frees and allocates hundreds of MiB. Above glibc's threshold each block is a fresh mapping,
# which the kernel zeroes page by page; that took half of the kernel's time in a CPU run. These
# settings keep freed memory in the process, in huge pages. All threads share one arena, because the
# others map every block above 64 MiB afresh, whatever the threshold.
ARENA = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
PROGRAM_BYTES = 1 << 16  # size of the file that tests whether the cache folder can be written
GPU_SHARE = 0.92  # share of a GPU's memory for arrays; `plan` counts with it, too; JAX's default is 0.75
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def on_cpu() -> bool:
    """Whether this process will compute on the CPU. Asking JAX would start its backend."""
    return os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and not any(map(glob.glob, ACCELERATORS))


def keep_memory() -> None:
    """Starts this process again with `ARENA` in its environment, if it will compute on a Linux CPU.

    glibc reads these variables only at start-up. If any of them is set already, the environment
    stays as it is.
    """
    if sys.platform == "linux" and on_cpu() and not ARENA.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ARENA)


def quiet_tpu_runtime() -> None:
    """Stops the TPU runtime from printing a page of warnings on a machine without a TPU.

    The runtime is installed for `plan`. It prints the page whenever JAX starts, unless these
    variables name a machine or JAX is told to use the CPU. Nothing else reads these variables.
    """
    if os.environ.get("JAX_PLATFORMS") != "cpu" and not any(map(glob.glob, ACCELERATORS)):
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")


def use_gpu_memory() -> None:
    """Lets JAX allocate `GPU_SHARE` of a GPU's memory, unless the environment sets a share."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(GPU_SHARE)


def keep_programs() -> None:
    """Keeps compiled programs between processes, in a folder that JAX_COMPILATION_CACHE_DIR can
    name.

    If the folder cannot be written, one warning is printed. Programs already in it are still read.
    """
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not folder:
        place = os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel_jax"
        folder = os.path.join(os.path.expanduser(place), "programs")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if "://" not in folder and (reason := _unwritable(Path(folder))):
        print(f"warning: compiled programs are not kept: {folder}: {reason}", file=sys.stderr)
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")


def _unwritable(folder: Path) -> str:
    """Why a file of a program's size cannot be written in a folder; "" if it can."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROGRAM_BYTES))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return ""
