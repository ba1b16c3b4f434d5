"""Recomputes batch statistics of averaged weights over training batches.

Averaging the members' running means would not give the statistics of the averaged weights, so batch
norm's statistics are recomputed by one pass over training data (Izmailov et al., arXiv:1803.05407,
section 3.2). A layer updates new = m * old + (1 - m) * batch. Starting from old = 0 yields the
batch's own statistic, up to the factor 1 - m. The mean over all batches is kept.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, precision, sharding
from bigmodel_jax.core.params import Tree
from bigmodel_jax.training.state import computed

EVEN = 1e-3  # the most by which the elements of one statistic may differ in momentum


def renewed_by_batches(config: Config) -> bool:
    """Whether the model has statistics that each batch updates.

    Statistics that a whole step updates from sums (a routing bias) do not count. Their mean is
    kept.
    """
    model = config.make_model()
    return not model.advance and bool(params.of_kind(model.spec, model.spec, "statistic"))


def recomputed(config: Config, mesh, weights: Tree, batches: Iterable[dict]) -> tuple[Tree, tuple[str, ...]]:
    """(weights with recomputed statistics, the paths of these statistics).

    Each statistic becomes the mean over `batches` of the batch's own statistic. Raises ValueError,
    one line, if a statistic is not a running average or not finite.
    """
    of_batch = _step(config, mesh)
    total, shares, count = {}, None, 0
    for number, batch in enumerate(batches):
        rng = jax.random.fold_in(jax.random.key(config.train.seed), number)
        shares = _shares(of_batch, weights, batch, rng) if shares is None else shares
        # From old = 0 the update is (1 - m) * batch.
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
    # Counts are integers, which have no mean.
    return {path: x for path, x in found.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _step(config: Config, mesh) -> Callable[[Tree, dict, jax.Array], dict[str, jax.Array]]:
    def step(weights, batch, rng):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            return {path: x.astype(jnp.float32) for path, x in _updates(config, weights, batch, rng).items()}

    return jax.jit(step)


def _filled(weights: Tree, values: Mapping[str, float]) -> Tree:
    flat = params.paths(weights)
    return params.from_paths(flat | {path: jnp.full_like(flat[path], value) for path, value in values.items()})


def _shares(of_batch: Callable, weights: Tree, batch: dict, rng: jax.Array) -> dict[str, float]:
    """1 - m of each running average: the weight of the batch's own statistic."""
    paths = of_batch(weights, batch, rng).keys()
    zero = of_batch(_filled(weights, dict.fromkeys(paths, 0.0)), batch, rng)
    # The second start is as large as the statistic: with a start of 1, the difference of two large
    # numbers would lose its digits.
    scales = {path: 1.0 + float(jnp.abs(x).max()) for path, x in zero.items()}
    moved = of_batch(_filled(weights, scales), batch, rng)
    shares = {}
    for path in paths:
        # The difference of the two updates is m times the difference of the starts.
        momentum = (moved[path] - zero[path]) / scales[path]
        share = 1.0 - float(momentum.mean())
        if not share > 0 or float(momentum.max() - momentum.min()) > EVEN:
            raise ValueError(
                f"ensemble: the statistic {path} is no running average over batches, so averaged weights cannot have it"
            )
        shares[path] = share
    return shares
