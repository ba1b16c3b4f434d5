"""What a process needs before JAX starts: a place for compiled programs, and on a CPU an allocator that keeps its memory."""

import contextlib
import glob
import os
import sys
import warnings
from pathlib import Path

# A step frees and allocates hundreds of MiB. Above glibc's threshold each block is a fresh mapping, zeroed page by page:
# half of the kernel's time in a CPU run. With these, memory once taken stays in the process, in huge pages.
ARENA = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
PROGRAM_BYTES = 1 << 16
GPU_SHARE = 0.92  # of a GPU's memory is for arrays, and is what `plan` counts with; JAX's own default is three quarters
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def on_cpu() -> bool:
    """Whether this process will compute on the CPU; JAX is not asked, since asking starts it."""
    return os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and not any(map(glob.glob, ACCELERATORS))


def keep_memory() -> None:
    """Starts this process once more with `ARENA` in its environment, where it will compute on a Linux CPU.

    glibc reads these at start-up only. The environment's own choice wins: any of them being set leaves all as they are.
    """
    if sys.platform == "linux" and on_cpu() and not ARENA.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ARENA)


def quiet_tpu_runtime() -> None:
    """Where the TPU's runtime is installed for `plan` and there is no TPU, it prints a page whenever JAX starts, unless
    these say which machine it is on, or JAX is told to use the CPU. Nothing else depends on them."""
    if os.environ.get("JAX_PLATFORMS") != "cpu" and not any(map(glob.glob, ACCELERATORS)):
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")


def use_gpu_memory() -> None:
    """Lets JAX take GPU_SHARE of a GPU's memory, unless the environment says otherwise."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(GPU_SHARE)


def keep_programs() -> None:
    """Compiled programs are kept between processes; JAX_COMPILATION_CACHE_DIR names another place.

    A place that cannot be written is one warning, and what it holds is read all the same.
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
    """Why a file of a program's size cannot be written in a folder; "" where it can."""
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
