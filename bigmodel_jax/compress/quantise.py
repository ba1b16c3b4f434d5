"""Stores a trained run's weights in 8 or 4 bits as a new run, which `eval`, `generate`, `export`
and `plan` accept.

The new folder holds quantized weights among its constants, and a checkpoint of the other
parameters.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import formats, params, sharding
from bigmodel_jax.core.storage import Dense
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.models.quantize import Kind, QuantizeConfig
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.pretrained.transfer import whole_or_nothing
from bigmodel_jax.training import constants, tables
from bigmodel_jax.training.saved import CHAT_TEMPLATE, load_weights
from bigmodel_jax.training.state import abstract_constants

RECORD = "quantized.json"  # a file in the folder that says where the weights come from and how they were made
# Files that the new run copies from the original one.
BESIDE = ("tokenizer.json", "special_tokens.json", "labels.json", "vocabulary.json", "scaling.json", CHAT_TEMPLATE)

# {path: stored node} of the weights that are not rounded to the nearest level.
Nodes = Mapping[str, Any]
Find = Callable[[Config, params.Tree], Nodes]


class Quantised(NamedTuple):
    """The new run; before, after: bytes of its parameters in float32, and as stored."""

    config: Config
    step: int
    before: int
    after: int


def check(config: Config, run_dir: Path, asked: QuantizeConfig) -> None:
    """Raises ValueError, one line, if the run's weights cannot be quantized."""
    if asked.kind == "none":
        raise ValueError(f"--kind = 'none'; it must be one of {', '.join(get_args(Kind))}")
    if config.quantize.kind != "none" and not config.quantize.aware:
        raise ValueError(
            f"quantize: {str(run_dir)!r} is quantised already (quantize.kind = {config.quantize.kind!r}); give the run that "
            "it was made of"
        )
    if type(config.adapters) is not AdapterConfig:
        raise ValueError(
            f"quantize: {str(run_dir)!r} has adapters; `export` writes them merged into their base, and `import` makes a "
            "run of that folder"
        )


def quantised(config: Config, asked: QuantizeConfig) -> Config:
    """The config of the new run: the same model and data, but no weight is trained."""
    train = dataclasses.replace(config.train, init_from="", init_state="weights", stochastic_depth=0.0)
    return dataclasses.replace(config, quantize=asked, optim=OptimConfig(), train=train)


def quantise_run(
    config: Config,
    run_dir: Path,
    folder: Path,
    asked: QuantizeConfig,
    *,
    which: str = "",
    find: Find | None = None,
    method: str = "round",
) -> Quantised:
    """Writes the new run `folder` with the weights of one checkpoint.

    which: as in `load_weights`. find: computes nodes of the weights that are not rounded to the
    nearest level. method: its name in the record. Raises ValueError, one line, and writes nothing,
    if it is impossible.
    """
    check(config, run_dir, asked)
    new = quantised(config, asked)
    validate(dataclasses.replace(new, data=DataConfig()))
    mesh = sharding.make_mesh(config.parallel)
    # A failure leaves no half-written run.
    with whole_or_nothing(folder, "FOLDER") as partial:
        weights, step = load_weights(config, run_dir, mesh, which)
        found = find(config, weights) if find else {}
        _write(partial, new, pack(new, weights, mesh, found))
        for name in BESIDE:
            if (run_dir / name).is_file():
                shutil.copyfile(run_dir / name, partial / name)
        about = {"run": str(run_dir), "step": step, "method": method}
        (partial / RECORD).write_text(json.dumps(formats.stamp() | about, indent=1) + "\n")
    return Quantised(new, step, 4 * params.count(config.make_model().spec), stored_bytes(new))


def pack(config: Config, weights: params.Tree, mesh, found: Nodes = {}) -> params.Tree:  # noqa: B006 - never mutated
    """The unquantized model's weights, stored and sharded as `config` says; found: nodes made
    already."""
    spec, values = params.paths(config.make_model().spec), params.paths(weights)
    fixed = params.paths(abstract_constants(config, mesh))
    nodes = {path: tables.stored(spec[path], found.get(path, values[path]), x) for path, x in fixed.items()}
    return params.from_paths({path: nodes.get(path, values[path]) for path in spec})


def _write(folder: Path, config: Config, weights: params.Tree) -> None:
    spec = config.make_model().spec
    constants.keep(folder, config, params.of_kind(weights, spec, "constant"), {})
    state = {"step": jnp.zeros((), jnp.int32)}
    for field, kind in (("params", "trained"), ("frozen", "statistic")):
        state[field] = params.of_kind(weights, spec, kind)
    with store.open_store(folder / "checkpoints", CheckpointConfig()) as saves:
        store.save(saves, 0, state, {"next_batch": 0}, config_file.to_json(config))
    config_file.save(config, folder / "config.json")


def stored_bytes(config: Config) -> int:
    """Bytes of all parameters of the run's model as they are stored."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params.abstract(config.make_model().spec)))


def by_storage(config: Config) -> dict[str, tuple[int, int]]:
    """{storage: (parameters, bytes)} of a run's model, largest first."""
    found: dict[str, tuple[int, int]] = {}
    for p in params.paths(config.make_model().spec).values():
        name = p.dtype if p.storage == Dense() else str(p.storage)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params.abstract({"x": p})))
        count, total = found.get(name, (0, 0))
        found[name] = count + p.size, total + size
    return dict(sorted(found.items(), key=lambda entry: -entry[1][1]))
