"""A run's model as the network of a search."""

from typing import Any

import jax
from jax.sharding import Mesh

from bigmodel_jax.core import precision, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.games import connect_four


def with_network(config: Any, mesh: Mesh, run: Any) -> Any:
    """(weights, *arrays) -> what run(network, *arrays) gives, compiled; the weights compute in the run's precision."""
    model = config.make_model()

    def compiled(weights, *arrays):
        with sharding.use(mesh, config.parallel.rules, config.parallel), precision.use(config.precision):
            weights = cast(weights, config.precision.compute)

            def network(boards):
                value = model.apply(weights, {"board": connect_four.planes(boards)}).value
                return value[:, :-1], value[:, -1]

            return run(network, *arrays)

    return jax.jit(compiled)
