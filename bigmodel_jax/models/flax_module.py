"""Makes a `Model` of any Flax module, Linen or NNX.

A config file uses a module of its own in a few lines:

    class Net(nnx.Module):                                  # a plain NNX module
        def __init__(self, width, rngs):
            self.hidden = nnx.Linear(784, width, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, 10, rngs=rngs)

        def __call__(self, image):
            return self.head(nnx.relu(self.norm(self.hidden(image.reshape(image.shape[0], -1)))))

    @dataclasses.dataclass(frozen=True)
    class NetConfig(ModelConfig):
        width: int = 256

        def make(self):
            inputs = lambda batch: (batch["image"],)
            return from_nnx(lambda rngs: Net(self.width, rngs), inputs=inputs)

and `Config(model=NetConfig(), ...)`. For a Linen module, `make` returns
`from_linen(Net(self.width), {"image": np.zeros((1, 28, 28, 1))}, ...)`.

How the parts of a module are treated:
- Parameters keep Flax's names, joined by "/" ("hidden/kernel"), and Flax's own initial values.
- Logical axes come from Flax's partitioning metadata (`nnx.with_partitioning`,
  `nn.with_logical_partitioning`) and must be names that `sharding.Rules` knows. An array of two or
  more dimensions without metadata is sharded over the fsdp axis along its longest dimension. All
  other arrays are replicated.
- Weight decay applies to parameters of two or more dimensions, counted in one layer where
  `nnx.vmap`, `nn.scan` and the like stack several.
- Every other variable or collection (batch norm's statistics) is a parameter with trainable=False.
  A training call returns its new value in `Out.updates`. Batch norm averages over a pmap step's
  devices by itself.
- Random streams are not state: each call derives them from its `rng`.
- `train()` / `eval()` (NNX) and the keywords of `MODES` that `__call__` has select the mode.
- Floating inputs are cast to the parameters' dtype: a float32 image would make Flax compute in
  float32 instead of bfloat16.
"""

import contextlib
import functools
import inspect
import threading
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx, traverse_util

from bigmodel_jax.core import params as param_trees
from bigmodel_jax.core.params import Init, Param
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.nn.lora import Adapted

Inputs = Callable[[dict], tuple]

# Keyword of `__call__` -> its value in training. Evaluation gets the opposite.
MODES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}

RANK = "rank_where_made"  # key of an nnx variable's metadata: its number of dimensions in one layer
_lock = threading.RLock()

# The axis name that a per-device step (pmap, shard_map) binds.
BATCH_AXIS = "batch"


def image(batch: dict) -> tuple:
    """The default `inputs`: a batch's images, for an image classifier."""
    return (batch["image"],)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module], *, inputs: Inputs = image) -> Model:
    """The `Model` of the NNX module `make(rngs)`; inputs(batch): the arguments of its `__call__`.

    `make` is first called abstractly, so that no array exists before `init(rng)` calls it again.
    """
    graph, variables = _abstract(make)
    names = {path: "/".join(map(str, path)) for path, v in variables.items() if not isinstance(v, nnx.RngState)}
    spec = {
        name: _param(v.get_value(), _nnx_axes(v), isinstance(v, nnx.Param), v.get_metadata()[RANK])
        for name, v in ((name, variables[path]) for path, name in names.items())
    }

    def init(rng: jax.Array) -> param_trees.Tree:
        with nnx.use_eager_sharding(False):
            state = dict(nnx.to_flat_state(nnx.split(make(nnx.Rngs(rng)), graph=True)[1]))
        return param_trees.from_paths({name: state[path].get_value() for path, name in names.items()})

    def apply(params, batch, *, rng=None, train=False, cache=None) -> Out:
        flat = _gather(param_trees.paths(params), spec)
        arrays = {path: flat[name] for path, name in names.items()} | _streams(variables, rng, train)
        # Every trace gets new Variables, because a Variable of an outer trace cannot be written.
        state = nnx.from_flat_state((path, v.replace(arrays[path])) for path, v in variables.items())
        module = nnx.merge(graph, state)
        module.train() if train else module.eval()
        if inside_batch_axis():
            module.set_attributes(nnx.BatchNorm, axis_name=BATCH_AXIS, raise_if_not_found=False)
        value = module(*_read(inputs, batch, flat, spec), **_mode(module, train))
        new = dict(nnx.to_flat_state(nnx.split(module, graph=True)[1])) if train else {}
        return Out(value, {n: new[path].get_value() for path, n in names.items() if train and not spec[n].trainable})

    return Model(param_trees.from_paths(spec), apply, init)


def from_linen(module: nn.Module, example: dict, *, inputs: Inputs = image) -> Model:
    """The `Model` of a Linen module; inputs(batch): the arguments of its `__call__`.

    example: a batch of any size, of arrays or `jax.ShapeDtypeStruct`. `init(rng)` merges all
    collections of `module.init(rng, *inputs(example))` into one tree.
    """

    def variables(rng: jax.Array) -> dict[tuple, Any]:
        batch = {
            k: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x for k, x in example.items()
        }
        return traverse_util.flatten_dict(module.init(rng, *inputs(batch), **_mode(module, False)))

    with _linen_ranks() as ranks:
        abstract = jax.eval_shape(lambda: variables(jax.random.key(0)))
    names = {key: "/".join(key[1:]) for key in abstract}  # key: (collection, *path)
    spec = {
        n: _param(_unbox(abstract[key]), _linen_axes(abstract[key]), key[0] == "params", ranks.get(key))
        for key, n in names.items()
    }
    if len(spec) < len(names):
        raise ValueError(f"{type(module).__name__}: two collections of this Linen module hold a variable of one path")
    others = sorted({key[0] for key in names} - {"params"})

    def init(rng: jax.Array) -> param_trees.Tree:
        return param_trees.from_paths({names[key]: _unbox(value) for key, value in variables(rng).items()})

    def apply(params, batch, *, rng=None, train=False, cache=None) -> Out:
        flat = _gather(param_trees.paths(params), spec)
        tree = traverse_util.unflatten_dict({key: flat[n] for key, n in names.items()})
        # Linen uses the stream "params" for every stream that is not given.
        rngs = {"params": rng} if train and rng is not None else {}
        with nn.intercept_methods(_average_over_devices):
            value, new = module.apply(
                tree,
                *_read(inputs, batch, flat, spec),
                **_mode(module, train),
                rngs=rngs,
                mutable=others if train else [],
            )
        new = traverse_util.flatten_dict(new)
        return Out(value, {names[key]: value for key, value in new.items() if key in names})

    return Model(param_trees.from_paths(spec), apply, init)


def batch_norm(
    p: dict, x: jax.Array, *, train: bool, momentum: float, eps: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Flax's batch norm over all dimensions but the last, for a model without Flax modules.

    Returns (y, statistics). In training `statistics` holds the new "mean" and "var". Otherwise it
    is empty. p: the arrays scale, bias, mean and var, each of shape (C,).
    """
    axis = BATCH_AXIS if inside_batch_axis() else None
    norm = nn.BatchNorm(not train, momentum=momentum, epsilon=eps, axis_name=axis, dtype=x.dtype)
    variables = {
        "params": {name: p[name] for name in ("scale", "bias")},
        "batch_stats": {name: p[name] for name in ("mean", "var")},
    }
    y, new = norm.apply(variables, x, mutable=["batch_stats"] if train else [])
    return y, dict(new.get("batch_stats", {}))


def _abstract(make: Callable) -> tuple[nnx.GraphDef, dict[tuple, nnx.Variable]]:
    """The module's structure, and its variables by path, which hold ShapeDtypeStructs."""
    # Eager sharding needs a mesh; nnx.eval_shape would take logical names for the mesh's axes.
    with nnx.use_eager_sharding(False), _nnx_ranks():
        graph, state = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0)), graph=True))
    return graph, dict(nnx.to_flat_state(state))


def _streams(variables: dict, rng: jax.Array | None, train: bool) -> dict[tuple, jax.Array]:
    """The random state of one call: a key per stream, from `rng` and
    the stream's path. Counts are 0.
    """
    streams = {path: v for path, v in variables.items() if isinstance(v, nnx.RngState)}
    if train and streams and rng is None:
        raise ValueError("this Flax module draws random numbers in training: apply needs rng")
    rng = jax.random.key(0) if rng is None else rng  # evaluation draws no numbers from it

    def one(path, variable):
        shape = variable.get_value().shape
        if isinstance(variable, nnx.RngCount):
            return jnp.zeros(shape, variable.get_value().dtype)
        # A stream's count and key have the same parent, whose path names the stream.
        key = jax.random.fold_in(rng, zlib.crc32("/".join(map(str, path[:-1])).encode()))
        return jax.random.split(key, shape) if shape else key

    return {path: one(path, v) for path, v in streams.items()}


@contextlib.contextmanager
def _nnx_ranks():
    """Every nnx variable made inside notes its rank; under `nnx.vmap`, the rank in one layer."""
    with _lock:
        own = nnx.Variable.__init__

        def noting(self, *args, **kwargs):
            own(self, *args, **kwargs)
            self.set_metadata(**{RANK: jnp.ndim(self.get_value())})

        nnx.Variable.__init__ = noting
        try:
            yield
        finally:
            nnx.Variable.__init__ = own


@contextlib.contextmanager
def _linen_ranks():
    """Yields {(collection, *path): number of dimensions} of the variables that Linen modules read.
    The lowest number counts, since `nn.scan` and `nn.vmap` give a module one layer of a stack."""
    ranks: dict[tuple, int] = {}

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        for (collection, *path), value in traverse_util.flatten_dict(dict(context.module.variables)).items():
            key, rank = (collection, *context.module.path, *path), jnp.ndim(_unbox(value))
            ranks[key] = min(rank, ranks.get(key, rank))
        return result

    with nn.intercept_methods(note):
        yield ranks


def _param(value: jax.ShapeDtypeStruct, axes: tuple | None, trainable: bool, rank: int | None) -> Param:
    """The `Param` of one variable; rank: its dimensions in one layer, None if unknown."""
    ndim = len(value.shape)
    if axes is None:
        longest = max(range(ndim), key=lambda i: value.shape[i], default=None)
        axes = tuple("embed" if ndim >= 2 and i == longest else None for i in range(ndim))
    axes = (*axes, *(None,) * (ndim - len(axes)))
    decay = trainable and (ndim - ("layers" in axes) if rank is None else rank) >= 2
    return Param(value.shape, axes, Init("flax", _own_init), str(value.dtype), decay, trainable)


def _own_init(key, shape, dtype):
    raise NotImplementedError("a Flax module brings its own initial values: call Model.init")


def _nnx_axes(variable: nnx.Variable) -> tuple | None:
    return variable.get_metadata().get("out_sharding")


def _linen_axes(value: Any) -> tuple | None:
    return value.names if isinstance(value, nn.Partitioned) else None


def _unbox(value: Any) -> Any:
    # `nn.unbox` would constrain the value by Linen's axis rules, which fails for an abstract value.
    return value.value if isinstance(value, nn.Partitioned) else value


def _gather(flat: dict[str, jax.Array], spec: dict[str, Param]) -> dict[str, jax.Array]:
    """Parameters as the module uses them: gathered along "embed", an axis for storage alone.

    Flax's layers constrain nothing. Without this constraint the compiler may move activations
    instead. Stacked layers stay sharded: gathering all of them at once would defeat fsdp.
    """

    def one(value: Any, axes: tuple) -> jax.Array:
        value = value.dense() if isinstance(value, Adapted) else value  # Flax modules expect arrays
        return value if "layers" in axes else constrain(value, *(None if a == "embed" else a for a in axes))

    return {n: one(v, spec[n].axes) for n, v in flat.items()}


def _read(inputs: Inputs, batch: dict, flat: dict[str, jax.Array], spec: dict[str, Param]) -> tuple:
    trainable = [flat[n].dtype for n, p in spec.items() if p.trainable and jnp.issubdtype(flat[n].dtype, jnp.floating)]
    return cast(inputs(batch), functools.reduce(jnp.promote_types, trainable)) if trainable else inputs(batch)


def _mode(module: Any, train: bool) -> dict[str, bool]:
    known = inspect.signature(type(module).__call__).parameters
    return {name: train == when for name, when in MODES.items() if name in known}


def inside_batch_axis() -> bool:
    """Whether this code is traced inside a per-device step (pmap, shard_map)."""
    try:
        jax.lax.axis_size(BATCH_AXIS)
    except NameError:
        return False
    return True


def _average_over_devices(call, args, kwargs, context):
    """Linen interceptor: in a per-device step, batch norm averages over all devices."""
    if isinstance(context.module, nn.BatchNorm) and inside_batch_axis():
        object.__setattr__(context.module, "axis_name", BATCH_AXIS)  # a bound module is frozen, and cannot be cloned
    return call(*args, **kwargs)
