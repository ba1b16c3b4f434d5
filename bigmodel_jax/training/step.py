"""One optimizer step as a pure function, compiled for a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bigmodel_jax import optim
from bigmodel_jax.config import Config
from bigmodel_jax.core import metrics, params, precision, sharding
from bigmodel_jax.core.compiler_options import compiler_options
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.precision import cast
from bigmodel_jax.models import Model
from bigmodel_jax.models.flax_module import BATCH_AXIS
from bigmodel_jax.nn import pipeline
from bigmodel_jax.training import deterministic, pipeline_1f1b, slices
from bigmodel_jax.training.state import TrainState, state_shardings

Metrics = dict[str, Mean]
# (compute parameters, frozen, batch, rng) -> summed gradients (float32), summed loss, summed metrics, new frozen values
Gradients = Callable[[params.Tree, params.Tree, dict, jax.Array], tuple[params.Tree, Mean, Metrics, params.Tree]]


def make_train_step(config: Config, mesh: Mesh) -> Callable[[TrainState, dict], tuple[TrainState, Metrics]]:
    """(state, batch) -> (state, metrics as sums), compiled; the state's buffers are donated."""
    model = config.model.make()
    tx, _ = optim.make(config.optim, model.spec, config.train.steps)
    if config.parallel.strategy == "pmap":
        return _pmap_step(config, mesh, model, tx)
    shardings = state_shardings(config, mesh)
    gradients, norm = _reduction(config, mesh, model, shardings.params)
    device = mesh.devices.flat[0]
    branch = device.platform == "cpu"

    def step(state, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            return train_step(
                config, tx, gradients, state, batch, norm=norm, grad_shardings=shardings.params, branch=branch
            )

    out = (shardings, sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=compiler_options(device))


def _reduction(config: Config, mesh: Mesh, model: Model, shardings: Any) -> tuple[Gradients, Callable]:
    """How gradients are added up over the mesh, and their norm: by the compiler unless the config says more."""
    gradients, norm = functools.partial(accumulate, config, model), optax.tree.norm
    specs = jax.tree.map(lambda s: s.spec, shardings)
    if config.parallel.deterministic:
        gradients = functools.partial(deterministic.gradients, config, mesh, specs, gradients)
        norm = functools.partial(deterministic.norm, config, mesh, model.spec, specs)
    elif config.parallel.slices > 1 and config.parallel.slice_gradients == "bfloat16":
        gradients = functools.partial(slices.gradients, config, mesh, specs, gradients)
    return gradients, norm


def _pmap_step(config, mesh, model, tx):
    """The classic replicated data-parallel step: one program per device, gradients summed over the axis."""

    def gradients(compute, frozen, batch, rng):
        rng = jax.random.fold_in(rng, jax.lax.axis_index(BATCH_AXIS))
        grads, mean, sums, frozen = accumulate(config, model, compute, frozen, batch, rng)
        return *jax.lax.psum((grads, mean, sums), BATCH_AXIS), jax.lax.pmean(frozen, BATCH_AXIS)

    devices = list(mesh.devices.flat)
    fn = functools.partial(train_step, config, tx, gradients, branch=devices[0].platform == "cpu")
    step = jax.pmap(fn, axis_name=BATCH_AXIS, in_axes=(None, 0), out_axes=(None, None), devices=devices)

    def run(state, batch):
        pieces = jax.tree.map(lambda x: x.reshape(len(devices), x.shape[0] // len(devices), *x.shape[1:]), batch)
        return step(state, pieces)

    return run


def train_step(
    config: Config,
    tx: optax.GradientTransformation,
    gradients: Gradients,
    state: TrainState,
    batch: dict,
    *,
    norm: Callable = optax.tree.norm,
    grad_shardings: Any = None,
    branch: bool = True,
) -> tuple[TrainState, Metrics]:
    """The step itself; `gradients` are those of the summed loss over the whole batch, `norm` their global norm's form.

    branch: whether a step that is not finite is skipped by a branch, or by a select over all leaves. The select costs a CPU a
    tenth of a step; the branch costs a TPU memory, for its arrays are copies in layouts of their own, and a GPU a look
    from the host.
    """
    rng = jax.random.fold_in(jax.random.key(config.train.seed), state.step)

    # --- gradients of the summed loss
    compute = cast(state.params, config.precision.compute)
    with precision.use(config.precision):
        grads, mean, sums, frozen = gradients(compute, state.frozen, batch, rng)

    # --- one division by the global count: exact for microbatches of unequal token counts. A factor, since compilers
    # make one of it anyway, or not: the bits would depend on the mesh.
    per_count = 1.0 / jnp.maximum(mean.count, 1.0)
    grads = jax.tree.map(lambda g: g * per_count, grads)
    if grad_shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, grad_shardings)
    grad_norm = norm(grads)

    # --- update, or skip it whole where anything is not finite
    if config.parallel.offload_optimizer:
        state = state.replace(opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(mean.total)

    def update(state, grads):
        grads = optim.clip(grads, grad_norm, config.optim.clip)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state, frozen=frozen)
        if state.ema is None:
            return new
        return new.replace(ema=optax.incremental_update(new.params, state.ema, 1.0 - config.optim.ema_decay))

    if branch:
        new = jax.lax.cond(finite, update, lambda state, _: state, state, grads)
    else:
        new = jax.tree.map(functools.partial(jnp.where, finite), update(state, grads), state)
    sums |= {
        "grad_norm": Mean(grad_norm, jnp.ones(())),
        "skipped_steps": Mean(1.0 - finite.astype(jnp.float32), jnp.zeros(())),
    }
    return new.replace(step=state.step + 1), sums


def accumulate(config, model, compute, frozen, batch, rng):
    """Summed gradients (float32), summed loss, summed metrics and the last frozen values over the microbatches."""

    def loss(trainable, frozen, piece, rng):
        # Running statistics stay float32: in bfloat16 an average with momentum 0.99 stops moving.
        tree = params.merge(trainable, frozen)
        out = config.objective.loss(model, tree, piece, rng=rng, train=True)
        updates = {path: out.updates[path].astype(leaf.dtype) for path, leaf in params.paths(frozen).items()}
        return out.mean.total, (out.mean, out.metrics, params.from_paths(updates))

    def one(frozen, piece, rng):
        if pipeline.active() and config.parallel.pipeline_schedule == "1f1b":
            return pipeline_1f1b.gradients(loss, compute, frozen, piece, rng)
        grads, (mean, sums, frozen) = jax.grad(loss, has_aux=True)(compute, frozen, piece, rng)
        return cast(grads, "float32"), mean, sums, frozen

    n = config.train.microbatches
    if n == 1:
        return one(frozen, batch, rng)

    def body(carry, piece_and_rng):
        (grads, mean, sums), frozen = carry
        g, m, s, frozen = one(frozen, *piece_and_rng)
        with jax.named_scope("sum_gradients"):  # by which `plan` and profiles tell them
            grads = jax.tree.map(jnp.add, grads, g)
        return ((grads, mean + m, metrics.add(sums, s)), frozen), None

    pieces = jax.tree.map(lambda x: split(x, n), batch)
    rngs = jax.random.split(rng, n)
    first = jax.eval_shape(one, frozen, jax.tree.map(lambda x: x[0], pieces), rngs[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first[:3])
    ((grads, mean, sums), frozen), _ = jax.lax.scan(body, (zeros, frozen), (pieces, rngs))
    return grads, mean, sums, frozen


def split(x: jax.Array, n: int) -> jax.Array:
    """(B, ...) -> (n, B/n, ...) with every n-th row in one piece, so that each device keeps the rows it holds."""
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)


def make_eval_step(config: Config, mesh: Mesh) -> Callable[[params.Tree, dict], Metrics]:
    """(merged parameters, batch) -> metrics as sums, compiled."""
    model = config.model.make()

    def step(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            trainable, frozen = params.partition(weights, model.spec)
            weights = params.merge(cast(trainable, config.precision.compute), frozen)
            return config.objective.loss(model, weights, batch, rng=None, train=False).metrics

    return jax.jit(step, out_shardings=sharding.replicated(mesh))
