"""Makes smaller models of the same family: removes whole layers, or hidden channels of MLPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.models.adapted import matrix
from bigmodel_jax.models.base import ModelConfig


def check_layers(model: ModelConfig) -> None:
    """Raises ValueError, one line, if layers cannot be removed: they differ, or form no stack."""
    name = type(model).__name__
    made = model.make()
    if not hasattr(model, "num_layers") or not made.parts:
        raise ValueError(f"--kind structured_layers: {name} is not a single stack of layers (models/base.py, Parts)")
    if len(set(model.windows())) > 1:
        raise ValueError(
            f"--kind structured_layers: the layers of {name} alternate between attention windows, "
            "and pruning layers would change their order"
        )
    if not model.LAYERS_ALIKE:
        raise ValueError(
            f"--kind structured_layers: the layers of {name} are of several kinds (mixers, positions, norms); "
            "pruning layers would change their order"
        )
    # Compare with a model of one layer less: a parameter whose other sizes change cannot be cut by
    # layer.
    smaller = _spec(dataclasses.replace(model, num_layers=model.num_layers - 1)) if model.num_layers > 1 else {}
    if any(_spec(model)[path].shape[1:] != p.shape[1:] for path, p in smaller.items() if _is_layered(p)):
        raise ValueError(f"--kind structured_layers: the layers of {name} have different shapes")


def fewer_layers(
    model: ModelConfig, weights: Tree, influence: np.ndarray, sparsity: float
) -> tuple[ModelConfig, Tree, list]:
    """(config with fewer layers, its merged parameters, indices of the removed layers).

    influence: (L,), a score of each layer. The round(sparsity * L) lowest are removed, but one
    layer always stays.
    """
    num = min(round(sparsity * model.num_layers), model.num_layers - 1)
    gone = sorted(np.argsort(influence, kind="stable")[:num].tolist())
    kept = jnp.asarray([i for i in range(model.num_layers) if i not in gone])
    spec = _spec(model)
    flat = {p: jnp.take(x, kept, axis=0) if _is_layered(spec[p]) else x for p, x in params.paths(weights).items()}
    return dataclasses.replace(model, num_layers=len(kept)), params.from_paths(flat), gone


# ---------------------------------------------------------------- channels


def channel_readers(model: ModelConfig) -> dict[str, Param]:
    """{path: matrix whose inputs are an MLP's hidden channels}.

    Raises ValueError without `mlp_dim`.
    """
    name, spec = type(model).__name__, _spec(model)
    if "mlp_dim" not in {field.name for field in dataclasses.fields(model)}:
        raise ValueError(f"--kind mlp_channels: {name} has no field mlp_dim that could be smaller")
    if any("experts" in p.axes for p in spec.values()):
        raise ValueError(f"--kind mlp_channels: {name} has experts, whose channels are not pruned")
    found = {path: p for path, p in spec.items() if (m := matrix(path, p)) and m.inner.axes == ("mlp",)}
    if not found:
        raise ValueError(f"--kind mlp_channels: no matrix of {name} reads the hidden channels of an MLP")
    return found


def channel_scores(weights: Tree, readers: dict[str, Param], squares: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{path of a reader: (M, F)}: each channel's norm on calibration rows times that of its
    weights."""
    flat, scores = params.paths(weights), {}
    for path in readers:
        w = np.asarray(flat[path], np.float64)
        w = w.reshape(*squares[path].shape, -1)
        scores[path] = np.sqrt(squares[path] * np.square(w).sum(-1))
    return scores


def kept_channels(scores: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """{path of a reader: (M, width)}: each layer's channels with the highest scores, ascending."""
    return {path: np.sort(np.argsort(-s, axis=-1, kind="stable")[:, :width], axis=-1) for path, s in scores.items()}


def narrower(model: ModelConfig, weights: Tree, kept: dict[str, np.ndarray]) -> tuple[ModelConfig, Tree]:
    """(config with the smaller `mlp_dim`, its merged parameters).

    Each MLP parameter is cut along its channels. It follows the reader in its own MLP:
    layers/mlp/up is cut like layers/mlp/down.
    """
    spec, flat = _spec(model), params.paths(weights)
    (width,) = {k.shape[-1] for k in kept.values()}
    for reader, channels in kept.items():
        for path in [p for p in flat if "mlp" in spec[p].axes and _mlp_of(p) == _mlp_of(reader)]:
            flat[path] = _cut(flat[path], spec[path].axes.index("mlp"), channels)
    new = dataclasses.replace(model, mlp_dim=width)
    # A family may have parameters that do not follow mlp_dim.
    if wrong := [p for p, q in _spec(new).items() if flat[p].shape != q.shape]:
        raise ValueError(f"--kind mlp_channels: {wrong[0]} of {type(model).__name__} does not follow mlp_dim")
    return new, params.from_paths(flat)


def _mlp_of(path: str) -> str:
    """The path of the MLP that holds a parameter: layers/mlp/up/kernel -> layers/mlp."""
    parts = path.split("/")
    at = max((n for n, part in enumerate(parts) if "mlp" in part), default=len(parts) - 2)
    return "/".join(parts[: at + 1])


def _cut(x: jax.Array, axis: int, channels: np.ndarray) -> jax.Array:
    """Keeps these channels of one axis; channels: (M, n), with M = 1 for a parameter outside a
    stack."""
    if axis == 0:
        return jnp.take(x, jnp.asarray(channels[0]), axis=0)
    # Broadcast the channel numbers over all other dimensions.
    index = jnp.asarray(channels).reshape(len(channels), *(-1 if n == axis else 1 for n in range(1, x.ndim)))
    return jnp.take_along_axis(x, index, axis=axis)


def _spec(model: ModelConfig) -> dict[str, Param]:
    return params.paths(model.make().spec)


def _is_layered(p: Param) -> bool:
    return p.axes[:1] == ("layers",)
