"""Compiles attention for TPUs that are not here, in a process of its own; prints {case: kernels in
the program}.

Started by the fixture `compiled_for_tpus`.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import Compute, LlamaConfig
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training.state import abstract_state
from bigmodel_jax.training.step import make_train_step

LENGTH = 1024
QUICK = {"optimization_level": "O0"}  # the program need not be the fastest
CASES = {
    "window_in_some_layers": {"window": 256, "local": True},
    "softcap": {"softcap": 50.0},
    "sinks": {"sinks": True},
    "full": {"causal": False},
    "latent": {"h": 192, "w": 128},
    "narrow": {"h": 64, "w": 64},
    "ulysses": {"parallel": ParallelConfig(data=1, fsdp=2, seq=2, context="ulysses")},
    "ring": {"parallel": ParallelConfig(data=1, fsdp=2, seq=2)},
    "ring_full": {"parallel": ParallelConfig(data=1, fsdp=2, seq=2), "causal": False},
    "ring_window": {"parallel": ParallelConfig(data=1, fsdp=2, seq=2), "window": 256},
}


def kernels(program: str) -> list[str]:
    """Names of the splash kernels that a compiled program calls, in order."""
    return sorted(re.findall(r"%(splash_\w+?)(?:\.\d+)? = ", program))


def attend(devices, *, parallel=ParallelConfig(data=1, fsdp=2, tensor=2), h=128, w=128, sinks=None, local=None, **rule):
    """Forward and backward pass of one attention with grouped heads."""
    mesh = sharding.make_mesh(parallel, devices)

    def loss(q, k, v, segments, sinks, local):
        at = Where(jnp.broadcast_to(jnp.arange(LENGTH), segments.shape), segments)
        options = {"sinks": sinks if use_sinks else None, "local": local if use_local else None}
        with sharding.use(mesh, parallel.rules, parallel):
            return jnp.sum(attention.attend(q, k, v, at, at, **options, **rule).astype(jnp.float32))

    use_sinks, use_local = sinks is not None, local is not None
    rows = NamedSharding(mesh, P("fsdp", "seq", "tensor"))
    shapes = [
        jax.ShapeDtypeStruct((4, LENGTH, *heads), jnp.bfloat16, sharding=rows) for heads in ((8, h), (4, h), (4, w))
    ]
    shapes.append(jax.ShapeDtypeStruct((4, LENGTH), jnp.int32, sharding=NamedSharding(mesh, P("fsdp", "seq"))))
    shapes += [
        jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, P("tensor"))),
        jax.ShapeDtypeStruct((), bool, sharding=NamedSharding(mesh, P())),
    ]
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile(compiler_options=QUICK).as_text()


def train_step(devices, remat):
    """A whole step of a small Llama, weights and heads cut."""
    model = dataclasses.replace(
        LlamaConfig.tiny(),
        embed_dim=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=128,
        max_seq_len=LENGTH,
        compute=Compute(remat=remat),
    )
    parallel = ParallelConfig(data=1, fsdp=2, tensor=2)
    config = Config(
        model,
        NextToken(),
        DataConfig(),
        parallel=parallel,
        train=TrainConfig(steps=4, batch_size=4),
        precision=Policy(compute="bfloat16"),
    )
    mesh = sharding.make_mesh(parallel, devices)
    where = sharding.batch_sharding(mesh, parallel.rules, ("seq",))
    names = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32) | {"weights": np.float32}
    batch = {k: jax.ShapeDtypeStruct((4, LENGTH), d, sharding=where) for k, d in names.items()}
    return (
        make_train_step(config, mesh)
        .lower(abstract_state(config, mesh), batch)
        .compile(compiler_options=QUICK)
        .as_text()
    )


def main():
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    found = {f"train_step, {remat}": kernels(train_step(devices, remat)) for remat in ("full", "save_attn")}
    for name, options in CASES.items():
        found[name] = kernels(attend(devices, **options))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
