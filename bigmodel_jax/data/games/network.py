"""The model of a run as the network of a tree search."""

from typing import Any

import jax
from jax.sharding import Mesh

from bigmodel_jax.core import precision, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.games import connect_four


def with_network(config: Any, mesh: Mesh, run: Any) -> Any:
    """Return a compiled function (weights, *arrays) -> run(network, *arrays).

    The weights are cast to the run's compute dtype. `network` maps boards to (logits, values).
    """
    model = config.make_model()

    def compiled(weights, *arrays):
        with sharding.use(mesh, config.parallel.rules, config.parallel), precision.use(config.precision):
            weights = cast(weights, config.precision.compute)

            def network(boards):
                value = model.apply(weights, {"board": connect_four.planes(boards)}).value
                # The last output is the value, and the others are the logits of the moves.
                return value[:, :-1], value[:, -1]

            return run(network, *arrays)

    return jax.jit(compiled)
