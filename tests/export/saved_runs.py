"""Runs with random weights, and Pythons that have nothing but what an exported folder asks for."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.core import params
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.objectives import Objective
from bigmodel_jax.training import constants

# What `pip install jax` installs.
ONLY_JAX = ("jax", "jaxlib", "numpy", "numpy.libs", "scipy", "scipy.libs", "ml_dtypes", "opt_einsum")
RUNS = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
for name in sys.argv.pop(1).split(","):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is there")
commands = [command.split("\\x1f") for command in sys.argv[1:]]
for command in commands:
    sys.argv[:] = command
    runpy.run_path(command[0], run_name="__main__")
"""


def save_run(model: ModelConfig, run_dir: Path, *, scale: float = 1.0, data: DataConfig = DataConfig()) -> Config:
    """Saves a run at step 0. All weights are drawn, also those that start at 0 or 1, and multiplied
    by `scale`."""
    config = Config(model=model, objective=Objective(), data=data)
    spec = config.make_model().spec
    tree = jax.tree.map(lambda x: x * scale, drawn(spec))
    trained, frozen, fixed = (params.of_kind(tree, spec, kind) for kind in ("trained", "statistic", "constant"))
    constants.keep(run_dir, config, fixed, {})
    state = {"step": jnp.zeros((), jnp.int32), "params": trained, "frozen": frozen}
    with store.open_store(run_dir / "checkpoints", CheckpointConfig()) as saves:
        store.save(saves, 0, state, {"next_batch": 0}, config_file.to_json(config))
    config_file.save(config, run_dir / "config.json")
    return config


def drawn(spec: params.Tree, seed: int = 0) -> params.Tree:
    rng = np.random.default_rng(seed)

    def one(path: str, p: params.Param) -> jax.Array:
        noise = rng.standard_normal(p.shape).astype(np.float32)
        # Variances and scales are positive.
        value = 1 + 0.1 * np.abs(noise) if len(p.shape) < 2 and ("var" in path or "scale" in path) else 0.2 * noise
        return jnp.asarray(value, p.dtype)

    return params.from_paths({path: one(path, p) for path, p in params.paths(spec).items()})


def bare_python(folder: Path) -> Path:
    """A folder of packages that holds jax and what it needs, by links."""
    folder.mkdir(parents=True, exist_ok=True)
    site = Path(importlib.util.find_spec("jax").origin).parents[1]
    for name in ONLY_JAX:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


def run_alone(packages: Path, *commands: list[str]) -> str:
    """What scripts print, one after the other, in a process whose packages are those of a folder
    alone."""
    absent = "bigmodel_jax,flax,orbax,safetensors,flatbuffers"
    joined = ["\x1f".join(map(str, command)) for command in commands]
    env = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "HOME": str(packages)}
    env["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    argv = [sys.executable, "-I", "-S", "-c", RUNS, str(packages), absent, *joined]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=packages, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
