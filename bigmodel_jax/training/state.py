"""The train state, which a step reads and writes, and its sharding on the mesh."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.models import Model
from bigmodel_jax.optim.optimizer import Optimizer, state_like
from bigmodel_jax.training import fits, spikes

HOST = "pinned_host"


@struct.dataclass
class TrainState:
    """The train state. Constants are not part of it, because no step changes them.

    step: number of steps done, including skipped ones.
    params: trained parameters.
    frozen: statistics; checkpoints store them under this name.
    opt_state: the optimizer's state.
    ema: the averaged parameters in float32, or None.
    recent: the window of recent losses and gradient norms (spikes.py), or None.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt_state: Any
    ema: Any
    recent: Any = None


def make_state(config: Config, model: Model, optimizer: Optimizer) -> TrainState:
    """A fresh state, which depends only on the config with its seed."""
    tree = _initial(config, model)
    trainable = cast(params.of_kind(tree, model.spec, "trained"), config.precision.param)
    frozen = params.of_kind(tree, model.spec, "statistic")
    # Moments and averages are float32, because bfloat16 rounds away changes of a thousandth per
    # step.
    full = cast(trainable, "float32")
    # This is a copy, because the same buffer must not be donated twice.
    ema = jax.tree.map(jnp.copy, full) if optimizer.average else None
    recent = spikes.fresh(config.train.spikes)
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.tx.init(full), ema, recent)


def _initial(config: Config, model: Model) -> params.Tree:
    rng = jax.random.key(config.train.seed)
    return model.init(rng) if model.init else params.init(model.spec, rng)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """The state as shapes with shardings, into which a checkpoint is restored."""
    model = config.make_model()
    optimizer = config.optim.make(model.spec, config.train.steps or 1)  # no shape depends on the number of steps
    shapes = jax.eval_shape(lambda: make_state(config, model, optimizer))
    where = _shardings(config, model.spec, optimizer, shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def state_shardings(config: Config, mesh: Mesh) -> TrainState:
    """The NamedSharding of every leaf. Moments and averages are sharded like their parameter."""
    return jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh))


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """A fresh state. Each device makes its own shards. Raises ValueError where it does not fit."""
    model = config.make_model()
    fits.check_weights(config, mesh)
    abstract = abstract_state(config, mesh)
    fits.check_state(config, mesh, (abstract, abstract_constants(config, mesh)))
    optimizer = config.optim.make(model.spec, config.train.steps)
    where = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(lambda: make_state(config, model, optimizer), out_shardings=where)()


def constant_shardings(config: Config, mesh: Mesh) -> params.Tree:
    """The NamedSharding of every constant parameter."""
    return jax.tree.map(lambda x: x.sharding, abstract_constants(config, mesh))


def abstract_constants(config: Config, mesh: Mesh) -> params.Tree:
    """The constants as shapes with shardings, in their stored form, whatever the config's
    precision.
    """
    spec = config.make_model().spec
    return params.of_kind(params.abstract(spec, sharding.placed(spec, mesh, config.parallel)), spec, "constant")


def init_constants(config: Config, mesh: Mesh, paths: Collection[str] | None = None) -> params.Tree:
    """Fresh constants, all or those of `paths`. Each device makes its own shards."""

    def chosen(tree: params.Tree) -> params.Tree:
        return params.from_paths({path: x for path, x in params.paths(tree).items() if paths is None or path in paths})

    model, where = config.make_model(), chosen(constant_shardings(config, mesh))
    make = jax.jit(lambda: chosen(params.of_kind(_initial(config, model), model.spec, "constant")), out_shardings=where)
    return make()


def with_weights(config: Config, state: TrainState, trainable: params.Tree, frozen: params.Tree) -> TrainState:
    """The state with these weights and a new optimizer state, which may contain the first
    weights.
    """
    optimizer = config.optim.make(config.make_model().spec, config.train.steps)
    where = jax.tree.map(lambda x: x.sharding, state.opt_state)
    state = state.replace(params=trainable, frozen=frozen, opt_state=None)  # never two optimizer states in memory
    full = cast(trainable, "float32")
    # These are copies, because some optimizers keep the first weights, and the step donates its
    # buffers.
    make = jax.jit(lambda tree: optimizer.tx.init(jax.tree.map(jnp.copy, tree)), out_shardings=where)
    return state.replace(opt_state=make(full), ema=None if state.ema is None else jax.tree.map(jnp.copy, full))


def _shardings(config: Config, spec: params.Tree, optimizer: Optimizer, abstract: TrainState, mesh: Mesh) -> TrainState:
    if config.parallel.strategy == "pmap":
        return jax.tree.map(lambda _: sharding.replicated(mesh), abstract)
    placed = sharding.placed(spec, mesh, config.parallel)
    trainable, frozen = (params.of_kind(placed, spec, kind) for kind in ("trained", "statistic"))
    shapes = params.of_kind(params.abstract(spec), spec, "trained")
    opt_state = state_like(optimizer.tx, abstract.opt_state, shapes, trainable, sharding.replicated(mesh))
    if config.parallel.offload_optimizer:
        check_host_memory(mesh.devices.flat[0])
        # Scalars, such as a count of steps, stay on the device.
        opt_state = jax.tree.map(lambda x, s: s.with_memory_kind(HOST) if x.ndim else s, abstract.opt_state, opt_state)
    return TrainState(
        step=sharding.replicated(mesh),
        params=trainable,
        frozen=frozen,
        opt_state=opt_state,
        ema=trainable if abstract.ema is not None else None,
        recent=jax.tree.map(lambda _: sharding.replicated(mesh), abstract.recent),
    )


def check_host_memory(device: jax.Device) -> None:
    """Raises ValueError where a device cannot use its host's memory."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"parallel.offload_optimizer = True: {device.device_kind} has no memory of kind {HOST!r} "
            f"(it has {', '.join(kinds) or 'none'})"
        )


def computed(config: Config, spec: params.Tree, weights: params.Tree) -> params.Tree:
    """The weights of a model of `spec` in the compute dtype. Statistics keep their dtype."""
    statistics = params.of_kind(weights, spec, "statistic")
    return params.merge(cast(weights, config.precision.compute), statistics)


def weights(state: TrainState, constants: params.Tree | None = None) -> params.Tree:
    """The parameters for evaluation: the average if there is one, with statistics and constants."""
    return params.merge(state.params if state.ema is None else state.ema, state.frozen, constants or {})
