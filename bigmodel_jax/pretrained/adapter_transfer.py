"""Imports a PEFT folder as a run beside its base, and exports an adapted run as a PEFT folder."""

import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import leaves, store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import Float
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import dense
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models.adapters import AdapterConfig, Lora, Ranked
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.nn.lora import BRANCH
from bigmodel_jax.pretrained import peft
from bigmodel_jax.pretrained.family import spec_by_path
from bigmodel_jax.pretrained.peft import Adapters
from bigmodel_jax.pretrained.peft_joined import Matrix
from bigmodel_jax.pretrained.transfer import Exported, family_of, whole_or_nothing
from bigmodel_jax.training import constants, tables
from bigmodel_jax.training.fresh import fresh_state, open_origin
from bigmodel_jax.training.saved import CHAT_TEMPLATE, chosen, load_weights
from bigmodel_jax.training.state import with_weights

# Files that the new run copies from its base run.
BESIDE = ("tokenizer.json", "special_tokens.json", "labels.json", CHAT_TEMPLATE)


class Base(Mapping):
    """The values of a run's parameters by path.

    Each value is read from its checkpoint when it is asked for.

    A value is a float32 numpy array in the published shape, without the rows that pad the
    vocabulary.
    """

    def __init__(self, places: constants.Places):
        self.places = places

    def __getitem__(self, path: str) -> np.ndarray:
        place = self.places[path]
        about = leaves.describe(place.directory, place.step)[place.leaf]
        shape = jax.ShapeDtypeStruct(about.shape, about.dtype)
        found = leaves.read(place.directory, place.step, {place.leaf: shape})[place.leaf]
        return np.asarray(found[tuple(map(slice, place.shape))], np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def import_adapters(
    folder: Path, run_dir: Path, base: str, *, dtype: Float = "float32", parallel: ParallelConfig = ParallelConfig()
) -> Config:
    """Makes `run_dir` a run at step 0 with the adapters of a PEFT folder, and returns its config.

    base: the run that the adapters belong to, as FOLDER, FOLDER@STEP or FOLDER@best. The new run
    refers to the base's weights and does not copy them. dtype: the type in which the adapters are
    stored. Raises a ValueError of one line for adapters of another base and for PEFT settings that
    are not supported. After such an error, `run_dir` has not been written.
    """
    origin = open_origin(base, "--base")
    # The base class means that the run has no adapters. Each kind of adapter is a subclass.
    if type(origin.config.adapters) is not AdapterConfig:
        raise ValueError(f"{origin.name} has adapters itself; export it merged, and import that, to put others on it")
    cfg = unpadded(origin.config.model)
    family, spec = family_of(cfg), spec_by_path(cfg)
    found = peft.read(folder, family, spec, cfg, Base(constants.places(origin.config, origin.folder, origin.step)))
    _check_tied(folder, origin.config, found)
    train = dataclasses.replace(origin.config.train, init_from=f"{origin.folder}@{origin.step}", init_state="weights")
    precision = dataclasses.replace(origin.config.precision, param=dtype)
    changes = {"adapters": _lora(found), "train": train, "precision": precision, "parallel": parallel}
    config = dataclasses.replace(origin.config, **changes)
    with whole_or_nothing(run_dir, "run_dir") as partial:
        # An import reads no data, so the base's data need not be on this machine.
        validate(dataclasses.replace(config, data=DataConfig()))
        mesh = sharding.make_mesh(config.parallel)
        fresh = fresh_state(config, mesh)
        values = _values(config, found, Base(fresh.places))
        state = with_weights(config, fresh.state, _placed(config, fresh.state.params, values), fresh.state.frozen)
        constants.keep(partial, config, fresh.constants, fresh.places)
        saved = {"step": jnp.zeros((), jnp.int32), "params": state.params, "frozen": state.frozen}
        with store.open_store(partial / "checkpoints", CheckpointConfig()) as saves:
            store.save(saves, 0, saved, {"next_batch": 0}, config_file.to_json(config))
        config_file.save(config, partial / "config.json")
        for name in BESIDE:
            if (origin.folder / name).is_file():
                shutil.copyfile(origin.folder / name, partial / name)
    return config


def _check_tied(folder: Path, config: Config, found: Adapters) -> None:
    """Raises ValueError for an adapter of an embedding table that is also the head.

    PEFT adapts the embedding alone. Our adapter of `embed/table` would change the tied head as
    well.
    """
    # A model without the field `tied_embeddings` always ties its head.
    tied = [path for path in {**found.matrices, **found.saved} if path == "embed/table"]
    if tied and getattr(config.model, "tied_embeddings", True):
        raise ValueError(
            f"{folder}: the embedding has an adapter or weights of its own, and the base's head is the same table, "
            "which PEFT leaves as it is; PEFT's merge_and_unload writes a model to import"
        )


def _lora(found: Adapters) -> Lora:
    """The config of the imported adapters. Its patterns match each adapted path exactly, so no
    other matrix gets an adapter.
    """
    # The commonest rank and alpha become the defaults. Other paths are listed in `ranks`.
    ranks = [(m.rank, m.alpha) for m in found.matrices.values()]
    rank, alpha = max(ranks, key=ranks.count)
    return Lora(
        targets="|".join(map(re.escape, sorted(found.matrices))),
        rank=rank,
        alpha=float(alpha),
        rank_stabilised=found.rslora,
        dora=any(m.magnitude is not None for m in found.matrices.values()),
        dropout=found.dropout,
        trained="|".join(map(re.escape, sorted(found.saved))),
        ranks=tuple(
            Ranked(re.escape(path), m.rank, float(m.alpha))
            for path, m in sorted(found.matrices.items())
            if (m.rank, m.alpha) != (rank, alpha)
        ),
    )


def _values(config: Config, found: Adapters, base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The adapter parameters by our path, below the adapters' name.

    Magnitudes and whole weights are stored as differences from the base's values.
    """
    values = {f"{path}/whole": x.astype(np.float32) - base[path] for path, x in found.saved.items()}
    for path, m in found.matrices.items():
        values |= {f"{path}/a": m.a, f"{path}/b": m.b}
        if m.magnitude is not None:
            values[f"{path}/magnitude"] = m.magnitude - _lengths(path, base[path], m)
    prefix = f"{BRANCH}/{config.adapters.name}/"
    return {f"{prefix}{path}": x for path, x in values.items()}


def _lengths(path: str, w: np.ndarray, m: Matrix) -> np.ndarray:
    """The L2 norm of each output's column of the base weight `w`, as float32 (lead, out)."""
    lead = m.a.shape[:-2]
    # A head's table is (vocabulary, width), so its inputs are the second axis.
    w = w.T if path.startswith("head/") else w.reshape(*lead, m.a.shape[-2], m.b.shape[-1])
    # A run stores the difference between a magnitude and this length, and that difference is small.
    # The sum in float64 keeps rounding errors out of it.
    return np.sqrt(np.square(w, dtype=np.float64).sum(len(lead))).astype(np.float32)


def _placed(config: Config, own: params.Tree, values: Mapping[str, np.ndarray]) -> params.Tree:
    """Returns `values` in the layout, storage and sharding of `own`, the run's trained
    parameters.
    """
    spec = params.paths(config.make_model().spec)
    published, tree = tables.published(config), params.paths(own)
    assert tree.keys() == values.keys(), sorted(tree.keys() ^ values.keys())
    made = {
        path: tables.resized(jnp.asarray(x).reshape(published[path]), published[path], spec[path])
        for path, x in values.items()
    }
    return params.from_paths({path: tables.stored(spec[path], x, tree[path]) for path, x in made.items()})


# ---------------------------------------------------------------- out


def export_adapters(
    config: Config, run_dir: Path, target: Path, *, dtype: Float = "float32", which: str = "", adapter: str = ""
) -> Exported:
    """Writes one of a run's LoRA adapters as a PEFT folder.

    which, adapter: the checkpoint and the adapter, as in `load_weights`. dtype: the type of the
        written tensors.

    Raises ValueError where PEFT's format cannot hold these adapters.
    """
    # `load_weights` needs the config with all adapters, and the export needs the config with one
    # adapter.
    whole, config = config, dataclasses.replace(config, adapters=_one(config, run_dir, adapter))
    if rows := [path for path in params.paths(config.make_model().spec) if path.endswith("/rows")]:
        raise ValueError(
            f"--peft: {rows[0]}: a PEFT folder holds no new rows; leave the option out: merged weights have them"
        )
    cfg = unpadded(config.model)
    family, spec = family_of(cfg), spec_by_path(cfg)
    mesh = sharding.make_mesh(config.parallel)
    tree, step = load_weights(whole, run_dir, mesh, which, adapter=adapter)
    found = _found(config, params.paths(tree), spec)
    _check_tied(run_dir, config, found)
    with whole_or_nothing(target, "export") as partial:
        peft.write(_cast(found, dtype), partial, family, spec, cfg)
    return Exported(family, step)


def _one(config: Config, run_dir: Path, adapter: str) -> Lora:
    """The config of the one adapter to export.

    Raises ValueError if several adapters are left, or if the adapter is not a LoRA.
    """
    names, known = chosen(config, adapter), config.adapters.named()
    if len(names) > 1:
        raise ValueError(
            f"--peft: {run_dir} has the adapters {', '.join(known)}, and a PEFT folder holds one; --adapter NAME says which"
        )
    own = known[names[0]] if names else config.adapters
    if not isinstance(own, Lora):
        raise ValueError(
            f"--peft: {run_dir} has no LoRA adapters (adapters = {type(own).__name__}); leave the option out"
        )
    return own


def _found(config: Config, tree: Mapping[str, Any], spec: Mapping[str, params.Param]) -> Adapters:
    """The adapters in a run's weights `tree` (by path), without the padding of the vocabulary."""
    own, matrices, saved = config.adapters, {}, {}
    prefix, published = f"{BRANCH}/{config.adapters.name}/", tables.published(config)
    parts = {path.removeprefix(prefix): path for path in tree if path.startswith(prefix)}
    for path in spec:
        mine = {
            part: np.asarray(tree[parts[f"{path}/{part}"]])[tuple(map(slice, published[parts[f"{path}/{part}"]]))]
            for part in ("a", "b", "magnitude", "whole")
            if f"{path}/{part}" in parts
        }
        if not mine:
            continue
        base = np.asarray(dense(tree[path], jnp.float32))[tuple(map(slice, spec[path].shape))]
        # A run stores whole weights and magnitudes as differences from the base (`_values`).
        if "whole" in mine:
            saved[path] = base + mine["whole"]
        else:
            matrices[path] = _matrix(path, spec[path], base, mine, _alpha(own, path))
    return Adapters(matrices, saved, own.rank_stabilised, own.dropout)


def _alpha(own: Lora, path: str) -> float:
    alpha = next((one.alpha for one in own.ranks if re.fullmatch(one.pattern, path)), None)
    return own.alpha if alpha is None else alpha


def _matrix(path: str, p: params.Param, base: np.ndarray, mine: Mapping[str, np.ndarray], alpha: float) -> Matrix:
    rank = mine["a"].shape[-1]
    # Each layer of a stack and each expert has an adapter of its own.
    num_lead = sum(name in ("layers", "experts") for name in p.axes)
    lead = p.shape[:num_lead]
    a = mine["a"].reshape(*lead, -1, rank)
    made = Matrix(rank, alpha, a, mine["b"].reshape(*lead, rank, -1))
    if "magnitude" not in mine:
        return made
    return dataclasses.replace(made, magnitude=mine["magnitude"].reshape(*lead, -1) + _lengths(path, base, made))


def _cast(found: Adapters, dtype: Float) -> Adapters:
    def cast(x: Any) -> Any:
        return x.astype(dtype) if isinstance(x, np.ndarray) else x

    matrices = {
        path: Matrix(**{field.name: cast(getattr(m, field.name)) for field in dataclasses.fields(m)})
        for path, m in found.matrices.items()
    }
    return dataclasses.replace(found, matrices=matrices, saved={path: cast(x) for path, x in found.saved.items()})
