"""Records the inputs of a model's products on calibration rows, and quantizes layer by layer with
GPTQ.

Each layer gets the outputs of the quantized layers before it. The calibration rows are the first of
the run's training split, shuffled by its seed. A weight that no product reads, such as an expert's,
is rounded to the nearest level.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.compress import gptq
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.channels import Channels
from bigmodel_jax.core.storage import Blocks, dense
from bigmodel_jax.data import make_iterator
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.quantize import QuantizeConfig
from bigmodel_jax.nn.lora import Adapted
from bigmodel_jax.training.state import computed


class Seen:
    """The inputs of one layer's products, collected while it is traced.

    found: {path of the weight: (sum of x x^T, largest |x|)}. num_in: {path: number of input
    dimensions}.
    """

    def __init__(self):
        self.found: dict[str, tuple[jax.Array, jax.Array]] = {}
        self.num_in: dict[str, int] = {}

    def add(self, path: str, x: jax.Array, num_dims: int) -> None:
        x = x.reshape(-1, int(np.prod(x.shape[x.ndim - num_dims :]))).astype(jnp.float32)
        products, largest = self.found.get(path, (0.0, 0.0))
        # Accelerators would otherwise multiply with fewer digits, and the sum must stay positive
        # definite.
        products = products + jnp.matmul(x.T, x, precision="highest")
        self.found[path] = products, jnp.maximum(largest, jnp.max(jnp.abs(x)))
        self.num_in[path] = num_dims


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched(Adapted):
    """A weight whose products record their inputs.

    Code that reads the node in any other way gets the weight itself.
    """

    path: str = dataclasses.field(default="", metadata={"static": True})
    seen: Seen | None = dataclasses.field(default=None, metadata={"static": True})

    def project(self, x: jax.Array, num_dims: int, product: Callable) -> jax.Array:
        self.seen.add(self.path, x, num_dims)
        return product(x, self.w, num_dims)


def by_gptq(
    config: Config, weights: params.Tree, asked: QuantizeConfig, num_rows: int, bar: Callable
) -> dict[str, Any]:
    """{path: quantized node} of the weights in the model's stack of layers, by GPTQ.

    weights: those of the unquantized run. bar: bar(iterable, total) shows progress and returns the
    iterable. Raises ValueError for a model without a stack of layers.
    """
    model = _in_parts(config, "--method = 'gptq'", "round")
    mesh = sharding.make_mesh(config.parallel)
    spec, flat = params.paths(asked.stored(model, "float32").spec), params.paths(weights)
    # Everything outside the stack of layers is rounded first, because the layers' inputs come from
    # the tables there. The stack is rounded below.
    rounded = {
        path: dense(p.storage.pack(flat[path]), "float32") if "layers" not in p.axes else flat[path]
        for path, p in spec.items()
    }
    layers = _Layers(config, model, mesh, params.from_paths(rounded))
    entries = [layers.enter(batch) for batch in _batches(config, mesh, num_rows)]
    made: dict[str, list] = {}
    for number in bar(range(layers.num), layers.num):
        layer = layers.layer(number)
        hessians: dict[str, Any] = {}
        for entry in entries:
            for path, (h, _) in layers.seen(layer, *entry.of(number)).items():
                hessians[path] = hessians.get(path, 0.0) + np.asarray(h, np.float64)
        done = params.paths(layer)
        for path, hessian in hessians.items():
            whole = f"{model.parts.stack}/{path}"
            if isinstance(spec[whole].storage, Blocks):
                w = flat[whole][number]
                node = gptq.quantise(spec[whole].storage, w, hessian, layers.num_in[path])
                made.setdefault(whole, []).append(node)
                done[path] = node.dense(done[path].dtype)
        for path, x in done.items():  # weights that no product reads
            p = spec[f"{model.parts.stack}/{path}"]
            if path not in hessians and isinstance(p.storage, Blocks):
                done[path] = dense(p.storage.pack(x), x.dtype)
        for entry in entries:
            # The next layer is calibrated on the outputs of the quantized one.
            entry.x = layers.run(params.from_paths(done), *entry.of(number))
    return {path: jax.tree.map(lambda *x: jnp.stack(x), *nodes) for path, nodes in made.items()}


def by_largest(
    config: Config, weights: params.Tree, asked: QuantizeConfig, num_rows: int, bar: Callable
) -> dict[str, Any]:
    """Nodes of kind "int8_static", like `by_gptq`: the input scale is that of the largest
    calibration input.

    Raises ValueError if no recorded product uses a weight.
    """
    model = _in_parts(config, "--kind = 'int8_static'", "int8_dynamic")
    mesh = sharding.make_mesh(config.parallel)
    spec, flat = params.paths(asked.stored(model, "float32").spec), params.paths(weights)
    layers = _Layers(config, model, mesh, weights)
    entries = [layers.enter(batch) for batch in _batches(config, mesh, num_rows)]
    found: dict[str, list[float]] = {}
    for number in bar(range(layers.num), layers.num):
        layer = layers.layer(number)
        largest: dict[str, float] = {}
        for entry in entries:
            for path, (_, top) in layers.seen(layer, *entry.of(number)).items():
                largest[path] = max(largest.get(path, 0.0), float(top))
            entry.x = layers.run(layer, *entry.of(number))
        for path, top in largest.items():
            found.setdefault(f"{model.parts.stack}/{path}", []).append(top)
    wanted = {path: p.storage for path, p in spec.items() if isinstance(p.storage, Channels)}
    if lacking := sorted(wanted.keys() - found.keys()):
        raise ValueError(
            f"--kind = 'int8_static': the calibration saw no product of {lacking[0]}; "
            f"give int8_dynamic, or keep = {lacking[0]!r}"
        )
    return {
        path: storage.calibrated(flat[path], jnp.asarray(found[path], jnp.float32)) for path, storage in wanted.items()
    }


def _in_parts(config: Config, option: str, other: str) -> Model:
    model = config.make_model()
    if model.parts is None:
        raise ValueError(
            f"{option}: {type(config.model).__name__} declares no stack of layers to calibrate; give {other}"
        )
    return model


def _batches(config: Config, mesh, num_rows: int) -> list[dict]:
    size = min(config.eval.batch_size or config.train.batch_size, num_rows)
    layout = {"mesh": mesh, "rules": config.parallel.rules}
    found = make_iterator(config.data, batch_size=size, seed=config.train.seed, **layout)
    return list(itertools.islice(found, max(num_rows // size, 1)))


class _Entry:
    """A batch on its way through the layers. `x` is the current residual."""

    def __init__(self, entry):
        self.x, self.xs, self.rest = entry.x, entry.xs, (*entry.shared, *entry.whole)

    def of(self, number: int) -> tuple:
        return self.x, jax.tree.map(lambda x: x[number], self.xs), self.rest


class _Layers:
    """The layers of a model in parts, run one at a time."""

    def __init__(self, config: Config, model, mesh, weights: params.Tree):
        self.config, self.mesh, self.parts = config, mesh, model.parts
        self.tree = self._traced(lambda w: self.parts.read(computed(config, model.spec, w), None))(weights)
        self.stacked = self.tree[self.parts.stack]
        self.num = jax.tree.leaves(self.stacked)[0].shape[0]
        self.num_in: dict[str, int] = {}  # {path of a weight that a product reads: number of its input dimensions}
        self.run = self._traced(lambda layer, x, xs, rest: self._block(layer, x, xs, rest)[0])
        self.seen = self._traced(self._seen)
        self.enter = lambda batch: _Entry(self._traced(self._enter)(self.tree, batch))

    def layer(self, number: int) -> params.Tree:
        return jax.tree.map(lambda x: x[number], self.stacked)

    def _traced(self, fn: Callable) -> Callable:
        def inside(*args):
            with sharding.use(self.mesh, self.config.parallel.rules, self.config.parallel):
                return fn(*args)

        return jax.jit(inside)

    def _enter(self, tree, batch):
        batch, _ = self.config.objective.inputs(batch, None)
        entry = self.parts.enter(self.parts.outside(tree), batch, rng=None, train=False, cache=None)
        return entry._replace(kept=None)

    def _block(self, layer, x, xs, rest):
        return self.parts.block(layer, x, xs, *rest, train=False)

    def _seen(self, layer, x, xs, rest):
        seen = Seen()
        # Vectors (norms, biases) are not weights of products.
        watched = {path: Watched(w, path=path, seen=seen) for path, w in params.paths(layer).items() if w.ndim > 1}
        self._block(params.from_paths(params.paths(layer) | watched), x, xs, rest)
        self.num_in |= seen.num_in
        return seen.found
