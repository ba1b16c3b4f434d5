"""Measures on calibration batches the norms of products' inputs, and how much each layer changes
the residual."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.compress.prune_masks import matrices_shape
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.models.adapted import matrix
from bigmodel_jax.nn.measured import Measured
from bigmodel_jax.nn.taps import tapped
from bigmodel_jax.training.state import computed


def input_squares(
    config: Config, mesh, weights: Tree, batches: Iterable[dict], wanted: dict[str, Param]
) -> dict[str, np.ndarray]:
    """{path: (M, I) float64}: the sum over all rows of the squares of each input of the matrices
    `wanted`.

    Raises ValueError, one line, if a matrix is not multiplied by `project` of nn/linear.py. Flax
    modules do not use it.
    """
    # A probe is an extra zero input of each product. `Measured` defines its gradient to be the sum
    # of squares.
    model, objective = config.make_model(), config.objective
    probes = {
        path: jnp.zeros((*matrix(path, p).lead.shape, *matrix(path, p).inner.shape)) for path, p in wanted.items()
    }

    def loss(probes, weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            flat = params.paths(computed(config, model.spec, weights))
            nodes = {
                p: Measured(flat[p], probe=x, num_in=len(matrix(p, wanted[p]).inner.shape)) for p, x in probes.items()
            }
            tree = params.from_paths(flat | nodes)
            return objective.loss(model, tree, batch, rng=None, train=False).mean.total

    step = jax.jit(jax.grad(loss))
    total = {path: np.zeros(matrices_shape(path, p)[:2]) for path, p in wanted.items()}
    for batch in batches:
        found = sharding.to_host(step(probes, weights, batch))
        total = {path: x + np.asarray(found[path], np.float64).reshape(x.shape) for path, x in total.items()}
    if unseen := [path for path, x in total.items() if not x.any()]:
        raise ValueError(
            f"prune: {unseen[0]} is not multiplied where its inputs can be seen (nn/linear.py); --kind magnitude needs no "
            "inputs, and --targets leaves parameters out"
        )
    return total


def block_influence(config: Config, mesh, weights: Tree, batches: Iterable[dict]) -> np.ndarray:
    """(L,): 1 - mean cosine between a layer's input and its output (Men et al., arXiv:2403.03853,
    eq. 1)."""
    model = config.make_model()

    def cosines(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            tree = computed(config, model.spec, weights)
            batch, _ = config.objective.inputs(batch, None)
            parts = model.parts
            first = parts.enter(parts.outside(parts.read(tree, None)), batch, rng=None, train=False, cache=None).x
            _, found = tapped(model.apply, "residual")(tree, batch, rng=None, train=False)
            x = jnp.concatenate([first[None], found["residual"]]).astype(jnp.float32)
            a, b = x[:-1], x[1:]
            products = [jnp.sum(u * v, -1) for u, v in ((a, b), (a, a), (b, b))]
            # The clamp avoids 0 / 0 for an all-zero residual.
            likeness = products[0] / jnp.maximum(jnp.sqrt(products[1] * products[2]), 1e-12)
            return likeness.mean(tuple(range(1, likeness.ndim)))

    step, total, count = jax.jit(cosines), 0.0, 0
    for batch in batches:
        total, count = total + np.asarray(sharding.to_host(step(weights, batch)), np.float64), count + 1
    return 1.0 - total / count
