"""One optimizer step as a pure function, compiled for a mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bigmodel_jax.config import Config, replaced
from bigmodel_jax.core import metrics, params, precision, sharding
from bigmodel_jax.core.compiler_options import compiler_options
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.precision import cast
from bigmodel_jax.models import Model
from bigmodel_jax.models.flax_module import BATCH_AXIS
from bigmodel_jax.nn import pipeline
from bigmodel_jax.optim.optimizer import Optimizer
from bigmodel_jax.training import deterministic, scopes, slices, spikes, watch
from bigmodel_jax.training.pieces import in_pieces, split, with_token_share
from bigmodel_jax.training.pipeline import pipeline_1f1b
from bigmodel_jax.training.pipeline.split_loss import PartedLoss
from bigmodel_jax.training.state import TrainState, constant_shardings, state_shardings

Metrics = dict[str, Mean]
STATISTIC = "statistic/"  # prefix of a statistic's path among a step's metrics: a sum for `Model.advance`
# (compute parameters, statistics, batch, rng, constants) -> summed gradients (float32), summed
# loss, summed metrics, and the statistics with new values
Gradients = Callable[
    [params.Tree, params.Tree, dict, jax.Array, params.Tree], tuple[params.Tree, Mean, Metrics, params.Tree]
]


def make_train_step(
    config: Config, mesh: Mesh, traced: Sequence[str] = (), *, watched: bool = False
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compiles (state, batch, constants={}) -> (state, metrics as sums). The state is donated.

    constants: the model's constant parameters (state.py `init_constants`). The step only reads
        them.
    traced: the seed and optimizer fields that are inputs of the program instead of constants. Their
        values, {name: scalar}, are one additional argument (shared_programs.py).
    watched: whether to measure what watch.py describes. This is a separate program, so the ordinary
        step does not change.
    """
    model = config.make_model()
    optimizer = config.optim.make(model.spec, config.train.steps)
    if config.parallel.strategy == "pmap":
        return _pmap_step(config, mesh, model, optimizer, watched)
    shardings = state_shardings(config, mesh)
    gradients, norm = _reduction(config, mesh, model, shardings.params, constant_shardings(config, mesh), watched)
    device = mesh.devices.flat[0]
    how = {"norm": norm, "grad_shardings": shardings.params, "branch": device.platform == "cpu", "watched": watched}

    def step(state, batch, constants=None, numbers=None):
        own, rule = config, optimizer
        for name in traced:
            own = replaced(own, name, numbers[name])
        if traced:
            rule = own.optim.make(model.spec, own.train.steps)
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            return train_step(own, model, rule, gradients, state, batch, constants, **how)

    out = (shardings, sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=compiler_options(device))


def _reduction(
    config: Config, mesh: Mesh, model: Model, shardings: Any, of_constants: Any, watched: bool
) -> tuple[Gradients, Callable]:
    """Returns the functions that add gradients up over the mesh and compute their norm.

    Without special settings the compiler does both. `shardings` are those of the trained
    parameters, `of_constants` those of the constants.
    """
    gradients, norm = functools.partial(accumulate, config, model, watched=watched), optax.tree.norm
    specs, constant_specs = jax.tree.map(lambda s: s.spec, (shardings, of_constants))
    if config.parallel.deterministic:
        gradients = functools.partial(deterministic.gradients, config, mesh, specs, constant_specs, gradients)
        norm = functools.partial(deterministic.norm, config, mesh, model.spec, specs)
    elif config.parallel.slices > 1 and config.parallel.slice_gradients == "bfloat16":
        gradients = functools.partial(slices.gradients, config, mesh, specs, gradients)
    return gradients, norm


def _pmap_step(config, mesh, model, optimizer, watched):
    """The classic data-parallel step by `jax.pmap`: replicated state, gradients summed."""

    def gradients(compute, frozen, batch, rng, constants):
        rng = jax.random.fold_in(rng, jax.lax.axis_index(BATCH_AXIS))
        batch = with_token_share(batch, total=lambda x: jax.lax.psum(x, BATCH_AXIS))
        *sums, frozen = accumulate(config, model, compute, frozen, batch, rng, constants, watched=watched)
        return *jax.lax.psum(sums, BATCH_AXIS), jax.lax.pmean(frozen, BATCH_AXIS)

    devices = list(mesh.devices.flat)
    fn = functools.partial(train_step, config, model, optimizer, gradients)
    fn = functools.partial(fn, branch=devices[0].platform == "cpu", watched=watched)
    step = jax.pmap(fn, axis_name=BATCH_AXIS, in_axes=(None, 0, None), out_axes=(None, None), devices=devices)

    def run(state, batch, constants=None):
        pieces = jax.tree.map(lambda x: x.reshape(len(devices), x.shape[0] // len(devices), *x.shape[1:]), batch)
        return step(state, pieces, constants)

    return run


def train_step(
    config: Config,
    model: Model,
    optimizer: Optimizer,
    gradients: Gradients,
    state: TrainState,
    batch: dict,
    constants: params.Tree | None = None,
    *,
    norm: Callable = optax.tree.norm,
    grad_shardings: Any = None,
    branch: bool = True,
    watched: bool = False,
) -> tuple[TrainState, Metrics]:
    """The step itself.

    `gradients` computes the gradients of the loss summed over the whole batch, and `norm` computes
    their global norm. `branch` says how a step that is not finite is skipped: by a branch, or by a
    select over all leaves. On a CPU a select costs a tenth of a step. On a TPU a branch costs
    memory, because its arrays are copied into other layouts. On a GPU a branch waits for the host.
    """
    # The key depends only on seed and step, so a resumed run draws the same numbers.
    rng = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    constants = constants or {}
    wanted = params.paths(params.of_kind(model.spec, model.spec, "constant"))
    assert params.paths(constants).keys() == wanted.keys(), "a step takes all constants of its model, and only these"

    # --- gradients of the summed loss
    if in_pieces(config):
        batch = with_token_share(batch)
    # One cast to the compute dtype per step. Gradients are taken with respect to the cast weights.
    compute, constants = cast((state.params, constants), config.precision.compute)
    with precision.use(config.precision):
        grads, mean, sums, frozen = gradients(compute, state.frozen, batch, rng, constants)
    if model.advance:
        frozen = model.advance(state.frozen, {path: sums.pop(STATISTIC + path).total for path in params.paths(frozen)})
    # Statistics without a new value keep the old one.
    frozen = params.merge(state.frozen, frozen)

    # --- one division by the global count, which is exact for microbatches of unequal token counts.
    # Multiply by the reciprocal: some compilers rewrite the division, so dividing would make the
    # bits depend on the mesh.
    per_count = 1.0 / metrics.divisor(mean.count)
    grads = jax.tree.map(lambda g: g * per_count, grads)
    if grad_shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, grad_shardings)
    grad_norm = norm(grads)
    if watched:
        sums = watch.finish(sums, grad_norm, config.train.batch_size)
        sums |= watch.norms("gradients", grads) | watch.norms("parameters", state.params)

    # --- update, or skip the step if something is not finite or it is a spike
    # The optimizer state comes from host memory once a step. `out_shardings` sends it back.
    if config.parallel.offload_optimizer:
        state = state.replace(opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(mean.total)
    value, taken, spiked = mean.total * per_count, finite, {}
    if config.train.spikes.action != "off":
        spike, above, recent = spikes.judge(config.train.spikes, state.recent, value, grad_norm)
        taken, state = finite & ~spike, state.replace(recent=recent)
        spiked = {"spikes": Mean(spike.astype(jnp.float32), jnp.zeros(())), "deviations": Mean(above, jnp.ones(()))}

    def update(state, grads):
        # The sum is float32 for every dtype of the parameters, because bfloat16 would round small
        # updates away.
        weights = cast(state.params, "float32")
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, weights, grad_norm=grad_norm, value=value)
        new, lost = precision.store(optax.apply_updates(weights, updates), state.params, config.precision, rng)
        new = state.replace(params=new, opt_state=opt_state, frozen=frozen)
        if state.ema is not None:
            new = new.replace(ema=optimizer.average(opt_state, cast(new.params, "float32"), state.ema))
        return new, lost | (watch.norms("updates", updates) if watched else {})

    unchanged = state, precision.no_loss(config.precision) | (watch.no_norms("updates", grads) if watched else {})
    if branch:
        new, lost = jax.lax.cond(taken, update, lambda *_: unchanged, state, grads)
    else:
        updated = update(state, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(updated, unchanged)  # a select would broadcast and promote
        new, lost = jax.tree.map(functools.partial(jnp.where, taken), updated, unchanged)
    sums |= lost | {
        "grad_norm": Mean(grad_norm, jnp.ones(())),
        "skipped_steps": Mean(1.0 - finite.astype(jnp.float32), jnp.zeros(())),
    }
    sums |= spiked
    rates = optimizer.rates(state.opt_state, new.opt_state)
    sums |= {name: Mean(rate, jnp.ones(())) for name, rate in rates.items()}
    return new.replace(step=state.step + 1), sums


def accumulate(config, model, compute, frozen, batch, rng, constants=None, *, watched=False):
    """Sums of gradients (float32), loss and metrics over the microbatches, and the last statistics.

    `frozen` has all statistics. Those without a new value are not returned. `constants` are in the
    compute dtype and get no gradient. `watched` adds what watch.py measures to the metrics.
    """
    # The layers of a pipeline return only sums, so nothing inside them can be tapped.
    of_batch = watch.tapped(config.objective.loss) if watched and not pipeline.active() else config.objective.loss

    def whole(trainable, frozen):
        # Running statistics stay float32, because an average with momentum 0.99 stops moving in
        # bfloat16.
        return params.merge(trainable, frozen, constants or {})

    def loss(trainable, frozen, piece, rng):
        return summed(of_batch(model, whole(trainable, frozen), piece, rng=rng, train=True), frozen)

    def summed(out, frozen):
        known = params.paths(frozen)
        check_updates(model.spec, out.updates)
        if model.advance:  # statistics are sums here, which add up as metrics do
            sums = {STATISTIC + path: Mean(x, jnp.zeros(())) for path, x in out.updates.items()}
            return out.mean.total, (out.mean, out.metrics | sums, {path: known[path] for path in out.updates})
        new = {path: out.updates[path].astype(x.dtype) for path, x in known.items() if path in out.updates}
        return out.mean.total, (out.mean, out.metrics, new)

    def one(frozen, piece, rng):
        if pipeline.active() and config.parallel.pipeline_schedule == "1f1b":
            of_frozen = (functools.partial(fn, frozen=frozen) for fn in (whole, summed))
            parted = PartedLoss(model.parts, config.objective, *of_frozen)
            grads, mean, sums, new = pipeline_1f1b.gradients(parted, compute, piece, rng)
        else:
            grads, (mean, sums, new) = jax.grad(loss, has_aux=True)(compute, frozen, piece, rng)
            grads = cast(grads, "float32")
        if watched:
            sums = sums | watch.piece(grads, mean)
        return grads, mean, sums, params.from_paths(new)

    n = config.train.microbatches
    if n == 1:
        return one(frozen, batch, rng)

    def body(carry, piece_and_rng):
        (grads, mean, sums), new = carry
        g, m, s, new = one(params.merge(frozen, new), *piece_and_rng)
        with jax.named_scope(scopes.SUM_GRADIENTS):  # `plan` and profiles recognise the additions by this name
            grads = jax.tree.map(jnp.add, grads, g)
        return ((grads, mean + m, metrics.add(sums, s)), new), None

    pieces = jax.tree.map(lambda x: split(x, n), batch)
    rngs = jax.random.split(rng, n)
    # The shapes of one piece's results give the zeros with which the sums begin.
    first = jax.eval_shape(one, frozen, jax.tree.map(lambda x: x[0], pieces), rngs[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first[:3])
    known, new = params.paths(frozen), params.paths(first[3])
    start = params.from_paths({path: known[path] for path in new})
    ((grads, mean, sums), new), _ = jax.lax.scan(body, (zeros, start), (pieces, rngs))
    return grads, mean, sums, new


def check_updates(spec: params.Tree, updates: dict) -> None:
    """Raises a one-line ValueError where a model returns a new value for a non-statistic."""
    specs = params.paths(spec)
    for path in sorted(updates):
        if path not in specs or specs[path].kind != "statistic":
            what = f"is {specs[path].kind}" if path in specs else "is not in its spec"
            raise ValueError(
                f"model: Out.updates has a new value of {path}, which {what}; only kind='statistic' may have one"
            )
