"""Compiles a mixture's gradient for TPUs that are not here, in a process of its own; prints its
collectives.

Started by the fixture `compiled_for_tpus`.
"""

import json
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn.experts import moe

B, T, D, E, K, F = 8, 128, 128, 8, 2, 256


def main() -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = sharding.make_mesh(ParallelConfig(data=1, expert=4), devices)
    spec = moe.spec(E, D, F, init=normal(1), out_init=normal(1)) | {"router": moe.router_spec(D, E, init=normal(1))}
    weights = params.abstract(spec, sharding.shardings(spec, mesh, Rules()))
    x = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16, sharding=sharding.batch_sharding(mesh, Rules(), ("seq", None)))

    def loss(p, x):
        with sharding.use(mesh, Rules()):
            p = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
            routing = moe.route(p.pop("router"), x, K)
            return jnp.sum(jnp.square(moe.experts(p, x, routing, jnp.ones((B, T), bool)).astype(jnp.float32)))

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(weights, x).compile({"optimization_level": "O0"})
    print(json.dumps(re.findall(r" = (\w+\[[\d,]*\])\S* ([a-z-]*(?:all-to-all|all-gather))\(", compiled.as_text())))


if __name__ == "__main__":
    main()
