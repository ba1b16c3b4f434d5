"""The reference's side of a parity test: committed fixtures, or the reference implementation run
live."""

import dataclasses
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.models import Model, ModelConfig
from bigmodel_jax.nn import stack
from bigmodel_jax.pretrained import Family, folder
from bigmodel_jax.pretrained.family import spec_by_path
from bigmodel_jax.training.state import init_state, with_weights
from bigmodel_jax.training.step import make_train_step

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Reference:
    """folder: a Hugging Face folder; arrays: what the reference computed with it; tree: its weights
    as our parameters."""

    folder: Path
    family: Family
    cfg: ModelConfig
    model: Model
    arrays: Mapping[str, np.ndarray]
    tree: Any
    gradients: Any


def fixture_folder(name: str, python: str | None, scratch: Path) -> Path:
    """The committed folder, or one written now by `python`, which has torch and transformers."""
    if not python:
        return HERE / "fixtures" / name
    subprocess.run([python, str(HERE / "make_reference.py"), name, "--output", str(scratch)], check=True)
    return scratch / name


def load(path: Path) -> Reference:
    family, cfg = folder.read_config(path)
    with np.load(path / "reference.npz") as arrays:
        found = dict(arrays)
    weights = folder.open_weights(path)
    gradients = dict(folder.open_file(path / "gradients.safetensors"))
    for fixed in ("pos_embed", "model.encoder.embed_positions.weight"):
        if fixed in gradients and not gradients[fixed].read().any():
            del gradients[fixed]  # positions that do not learn
    return Reference(path, family, cfg, cfg.make(), found, read(family, cfg, weights), read(family, cfg, gradients))


def read(family: Family, cfg: ModelConfig, source) -> Any:
    device = SingleDeviceSharding(jax.devices()[0])
    shardings = dict.fromkeys(spec_by_path(cfg), device)
    return params.from_paths(folder.load_params(family, cfg, source, shardings, "float32"))


def read_file(family: Family, cfg: ModelConfig, path: Path) -> Any:
    """Weights or gradients in one file beside a model's, by the model's names: what it lacks is the
    model's own."""
    own, found = dict(folder.open_weights(path.parent)), dict(folder.open_file(path))
    return read(family, cfg, {name: found.get(name, tensor) for name, tensor in own.items()})


def losses_of_steps(config: Config, tree: Any, batch: dict, constants: Any = None, name: str = "loss") -> list[float]:
    """The loss at each of the config's train steps on one batch, on one device; the weights begin
    as `tree`."""
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state = with_weights(config, init_state(config, mesh), jax.tree.map(jnp.copy, tree), {})
    step, losses = make_train_step(config, mesh), []
    for _ in range(config.train.steps):
        state, sums = step(state, batch, *([constants] if constants else []))
        losses.append(float(sums[name].compute()))
    return losses


def record_layers(monkeypatch) -> list[list[jax.Array]]:
    """From now on, for every stack of layers that runs: what goes into each of its layers, and what
    leaves the last."""
    stacks, run = [], stack.sequential  # which stack.run comes to as well, where there is no pipeline

    def recorded(block, stacked, x, xs=None, **options):
        states = []
        stacks.append(states)

        def watched(p, x, xs, *shared):
            states.append(jax.tree.leaves(x)[0])
            return block(p, x, xs, *shared)

        out = run(watched, stacked, x, xs, **(options | {"unroll": True, "remat": "none"}))
        states.append(jax.tree.leaves(out[0])[0])
        return out

    monkeypatch.setattr(stack, "sequential", recorded)
    return stacks


def distance(a, b) -> float:
    """The largest difference of two arrays of one shape."""
    assert np.shape(a) == np.shape(b)
    return float(np.max(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32))))
