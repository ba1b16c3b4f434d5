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
from bigmodel_jax.training.pipeline import pipeline_1f1b
from bigmodel_jax.training.pipeline.split_loss import PartedLoss
from bigmodel_jax.training.state import TrainState, constant_shardings, state_shardings

Metrics = dict[str, Mean]
STATISTIC = "statistic/"  # before the path of a statistic, among the metrics of a step: a sum for `Model.advance`
# (compute parameters, statistics, batch, rng, constants) -> summed gradients (float32), summed loss, summed metrics, and
# the statistics that have new values
Gradients = Callable[
    [params.Tree, params.Tree, dict, jax.Array, params.Tree], tuple[params.Tree, Mean, Metrics, params.Tree]
]


def make_train_step(
    config: Config, mesh: Mesh, traced: Sequence[str] = (), *, watched: bool = False
) -> Callable[..., tuple[TrainState, Metrics]]:
    """(state, batch, constants={}) -> (state, metrics as sums), compiled; the state's buffers are donated.

    constants: the model's constant parameters (state.py `init_constants`), which the step reads and never returns.
    traced: fields of the seed and of the optimizer that are no constants of the program; their values, {name: scalar},
    are one argument more (shared_programs.py).
    watched: its metrics have what watch.py measures, too. A program of its own, so that the ordinary one stays as it is.
    """
    model = config.make_model()
    optimizer = config.optim.make(model.spec, config.train.steps)
    if config.parallel.strategy == "pmap":
        return _pmap_step(config, mesh, model, optimizer, watched)
    shardings = state_shardings(config, mesh)
    gradients, norm = _reduction(config, mesh, model, shardings.params, constant_shardings(config, mesh), watched)
    device = mesh.devices.flat[0]
    branch = device.platform == "cpu"

    def step(state, batch, constants=None, numbers=None):
        own, rule = config, optimizer
        for name in traced:
            own = replaced(own, name, numbers[name])
        if traced:
            rule = own.optim.make(model.spec, own.train.steps)
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            return train_step(
                own,
                model,
                rule,
                gradients,
                state,
                batch,
                constants,
                norm=norm,
                grad_shardings=shardings.params,
                branch=branch,
                watched=watched,
            )

    out = (shardings, sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=compiler_options(device))


def _reduction(
    config: Config, mesh: Mesh, model: Model, shardings: Any, of_constants: Any, watched: bool
) -> tuple[Gradients, Callable]:
    """How gradients are added up over the mesh, and their norm: by the compiler unless the config says more.

    shardings: of the trained parameters; of_constants: of the constants.
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
    """The classic replicated data-parallel step: one program per device, gradients summed over the axis."""

    def gradients(compute, frozen, batch, rng, constants):
        rng = jax.random.fold_in(rng, jax.lax.axis_index(BATCH_AXIS))
        batch = with_token_share(batch, total=lambda x: jax.lax.psum(x, BATCH_AXIS))
        found = accumulate(config, model, compute, frozen, batch, rng, constants, watched=watched)
        grads, mean, sums, frozen = found
        return *jax.lax.psum((grads, mean, sums), BATCH_AXIS), jax.lax.pmean(frozen, BATCH_AXIS)

    devices = list(mesh.devices.flat)
    how = {"branch": devices[0].platform == "cpu", "watched": watched}
    fn = functools.partial(train_step, config, model, optimizer, gradients, **how)
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
    """The step itself; `gradients` are those of the summed loss over the whole batch, `norm` their global norm's form.

    branch: whether a step that is not finite is skipped by a branch, or by a select over all leaves. The select costs a CPU a
    tenth of a step; the branch costs a TPU memory, for its arrays are copies in layouts of their own, and a GPU a look
    from the host.
    """
    rng = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    constants = constants or {}
    wanted = params.paths(params.of_kind(model.spec, model.spec, "constant"))
    assert params.paths(constants).keys() == wanted.keys(), "a step takes all constants of its model, and only these"

    # --- gradients of the summed loss
    if _in_pieces(config):
        batch = with_token_share(batch)
    compute, constants = cast((state.params, constants), config.precision.compute)
    with precision.use(config.precision):
        grads, mean, sums, frozen = gradients(compute, state.frozen, batch, rng, constants)
    if model.advance:
        frozen = model.advance(state.frozen, {path: sums.pop(STATISTIC + path).total for path in params.paths(frozen)})
    frozen = params.merge(state.frozen, frozen)

    # --- one division by the global count: exact for microbatches of unequal token counts. A factor, since compilers
    # make one of it anyway, or not: the bits would depend on the mesh.
    per_count = 1.0 / jnp.maximum(mean.count, 1.0)
    grads = jax.tree.map(lambda g: g * per_count, grads)
    if grad_shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, grad_shardings)
    grad_norm = norm(grads)
    if watched:
        sums = watch.finish(sums, grad_norm, config.train.batch_size)
        sums |= watch.norms("gradients", grads) | watch.norms("parameters", state.params)

    # --- update, or skip it whole where anything is not finite, or far outside its recent spread
    if config.parallel.offload_optimizer:
        state = state.replace(opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(mean.total)
    value, taken, spiked = mean.total * per_count, finite, {}
    if config.train.spikes.action != "off":
        spike, above, recent = spikes.judge(config.train.spikes, state.recent, value, grad_norm)
        taken, state = finite & ~spike, state.replace(recent=recent)
        spiked = {"spikes": Mean(spike.astype(jnp.float32), jnp.zeros(())), "deviations": Mean(above, jnp.ones(()))}

    def update(state, grads):
        # float32, whatever the parameters are stored in: of an update's 24 bits bfloat16 keeps what the weight leaves it.
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
    """Summed gradients (float32), summed loss, summed metrics and the last new statistics over the microbatches.

    frozen: all statistics; those that the model gives no new value are not among the new ones. constants: in the dtype
    that the model computes with; no gradient of them is computed. watched: the metrics have what watch.py measures of it.
    """
    # A pipeline's layers return sums alone, and no taps.
    of_batch = watch.tapped(config.objective.loss) if watched and not pipeline.active() else config.objective.loss

    def whole(trainable, frozen):
        # Running statistics stay float32: in bfloat16 an average with momentum 0.99 stops moving.
        return params.merge(trainable, frozen, constants or {})

    def loss(trainable, frozen, piece, rng):
        return summed(of_batch(model, whole(trainable, frozen), piece, rng=rng, train=True), frozen)

    def summed(out, frozen):
        known = params.paths(frozen)
        check_updates(model.spec, out.updates)
        if model.advance:  # sums, which go the way of all sums
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
        with jax.named_scope(scopes.SUM_GRADIENTS):  # by which `plan` and profiles tell them
            grads = jax.tree.map(jnp.add, grads, g)
        return ((grads, mean + m, metrics.add(sums, s)), new), None

    pieces = jax.tree.map(lambda x: split(x, n), batch)
    rngs = jax.random.split(rng, n)
    first = jax.eval_shape(one, frozen, jax.tree.map(lambda x: x[0], pieces), rngs[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first[:3])
    known, new = params.paths(frozen), params.paths(first[3])
    start = params.from_paths({path: known[path] for path in new})
    ((grads, mean, sums), new), _ = jax.lax.scan(body, (zeros, start), (pieces, rngs))
    return grads, mean, sums, new


def check_updates(spec: params.Tree, updates: dict) -> None:
    """ValueError, one line, where a model returns a new value of what is no statistic."""
    specs = params.paths(spec)
    for path in sorted(updates):
        if path not in specs or specs[path].kind != "statistic":
            what = f"is {specs[path].kind}" if path in specs else "is not in its spec"
            raise ValueError(
                f"model: Out.updates has a new value of {path}, which {what}; only parameters of kind='statistic' have"
            )


def _in_pieces(config: Config) -> bool:
    """Whether the loss is computed on pieces of the batch, each for itself."""
    parallel = config.parallel
    groups = parallel.deterministic or (parallel.slices > 1 and parallel.slice_gradients == "bfloat16")
    return config.train.microbatches > 1 or parallel.pipeline_schedule == "1f1b" or groups


def with_token_share(batch: dict, total: Callable = lambda x: x) -> dict:
    """A batch of tokens with "token_share" (B,), by which means over the tokens of its pieces add up to its own
    (nn/experts/moe.py). total: adds a number up over the devices where each has a part of the batch."""
    if not {"tokens", "weights"} <= batch.keys():
        return batch
    held = batch["segment_ids"] > 0 if "segment_ids" in batch else jnp.ones_like(batch["tokens"], bool)
    tokens = held.astype(jnp.float32).sum(tuple(range(1, held.ndim)))
    weight = total(batch["weights"].astype(jnp.float32).sum())
    return batch | {"token_share": tokens * weight / jnp.maximum(total(tokens.sum()), 1.0)}


def split(x: jax.Array, n: int) -> jax.Array:
    """(B, ...) -> (n, B/n, ...) with every n-th row in one piece, so that each device keeps the rows it holds."""
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
