"""Batch statistics of averaged weights, recomputed over training batches.

The mean of running means is not the running mean of the mean of the weights: batch norm's statistics are computed anew by
one pass over training data (Izmailov et al., arXiv:1803.05407, section 3.2). A running average new = m old + (1 - m) batch is
solved for the batch's own statistic by starting it from zeros; the mean over all batches is what is kept.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, precision, sharding
from bigmodel_jax.core.params import Tree
from bigmodel_jax.training.state import computed

EVEN = 1e-3  # how far the momenta of one running average may be apart, before it is none


def renewed_by_batches(config: Config) -> bool:
    """Whether the model has statistics that a batch may renew; those that sums of a whole step renew (a routing bias) are
    none, and their mean stays."""
    model = config.make_model()
    return not model.advance and bool(params.of_kind(model.spec, model.spec, "statistic"))


def recomputed(config: Config, mesh, weights: Tree, batches: Iterable[dict]) -> tuple[Tree, tuple[str, ...]]:
    """(`weights` with each statistic that a batch renews as the mean over `batches` of the batches' own; their paths).

    ValueError, one line, where a statistic is no running average, or is not finite.
    """
    of_batch = _step(config, mesh)
    total, shares, count = {}, None, 0
    for number, batch in enumerate(batches):
        rng = jax.random.fold_in(jax.random.key(config.train.seed), number)
        shares = _shares(of_batch, weights, batch, rng) if shares is None else shares
        from_zero = of_batch(_filled(weights, dict.fromkeys(shares, 0.0)), batch, rng)
        own = {path: x / shares[path] for path, x in from_zero.items()}
        total = {path: total[path] + x for path, x in own.items()} if total else own
        count += 1
    flat = params.paths(weights)
    new = {path: (x / count).astype(flat[path].dtype) for path, x in total.items()}
    if wrong := [path for path, x in new.items() if not bool(jnp.isfinite(x).all())]:
        raise ValueError(f"ensemble: the statistic {wrong[0]} is not finite over the training batches")
    return params.from_paths(flat | new), tuple(sorted(new))


def _updates(config: Config, weights: Tree, batch: dict, rng: jax.Array) -> dict[str, jax.Array]:
    model = config.make_model()
    tree = computed(config, model.spec, weights)
    with precision.use(config.precision):
        found = config.objective.loss(model, tree, batch, rng=rng, train=True).updates
    return {path: x for path, x in found.items() if jnp.issubdtype(x.dtype, jnp.floating)}  # a count has no mean


def _step(config: Config, mesh) -> Callable[[Tree, dict, jax.Array], dict[str, jax.Array]]:
    def step(weights, batch, rng):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            return {path: x.astype(jnp.float32) for path, x in _updates(config, weights, batch, rng).items()}

    return jax.jit(step)


def _filled(weights: Tree, values: Mapping[str, float]) -> Tree:
    flat = params.paths(weights)
    return params.from_paths(flat | {path: jnp.full_like(flat[path], value) for path, value in values.items()})


def _shares(of_batch: Callable, weights: Tree, batch: dict, rng: jax.Array) -> dict[str, float]:
    """1 - m of each running average: what a batch's own statistic weighs in the new one."""
    paths = of_batch(weights, batch, rng).keys()
    zero = of_batch(_filled(weights, dict.fromkeys(paths, 0.0)), batch, rng)
    # A second start as large as the statistic itself: of 1 a difference of large numbers would leave few digits.
    scales = {path: 1.0 + float(jnp.abs(x).max()) for path, x in zero.items()}
    moved = of_batch(_filled(weights, scales), batch, rng)
    shares = {}
    for path in paths:
        momentum = (moved[path] - zero[path]) / scales[path]
        share = 1.0 - float(momentum.mean())
        if not share > 0 or float(momentum.max() - momentum.min()) > EVEN:
            raise ValueError(
                f"ensemble: the statistic {path} is no running average over batches, so that averaged weights have none"
            )
        shares[path] = share
    return shares
