"""Compiles training steps for TPUs that are not here, in a process of its own; prints what takes
memory in each as JSON.

Started by the fixture `compiled_for_tpus`.
"""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import Compute, LlamaConfig
from bigmodel_jax.nn import head
from bigmodel_jax.nn.head import Head
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training.state import abstract_state
from bigmodel_jax.training.step import make_train_step

MODEL = LlamaConfig(
    vocab_size=4096,
    num_layers=4,
    embed_dim=256,
    num_heads=2,
    num_kv_heads=2,
    mlp_dim=512,
    max_seq_len=512,
    compute=Compute(remat="full"),
)
# Without a kernel of attention, whose compilation takes most of the time.
SHORT = {"max_seq_len": 128, "vocab_size": 1024}
# Its state takes more than what a step computes.
WIDE = {"vocab_size": 8192, "embed_dim": 1024, "num_heads": 8, "num_kv_heads": 8, "mlp_dim": 4096, "max_seq_len": 128}
VOCAB, DIM = 32_768, 1024
# The programs need not be the fastest.
QUICK = {"optimization_level": "O0"}


def step(devices, model=None, parallel=None, precision=None) -> dict:
    parallel = dataclasses.replace(ParallelConfig(data=1, fsdp=len(devices)), **parallel or {})
    model = dataclasses.replace(MODEL, **model or {})
    policy = Policy(compute="bfloat16", **precision or {})
    train = TrainConfig(steps=4, batch_size=2 * len(devices))
    config = Config(model, NextToken(), DataConfig(), parallel=parallel, train=train, precision=policy)
    mesh = sharding.make_mesh(parallel, devices)
    where = sharding.batch_sharding(mesh, parallel.rules, ("seq",))
    names = {"tokens": np.int32, "targets": np.int32, "weights": np.float32}
    shape = (train.batch_size, model.max_seq_len)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in names.items()}
    lowered = make_train_step(config, mesh).lower(abstract_state(config, mesh), batch)
    compiled = lowered.compile(compiler_options=QUICK)
    memory, program = compiled.memory_analysis(), compiled.as_text()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "host_arguments": memory.host_argument_size_in_bytes,
        "host_temporaries": memory.host_temp_size_in_bytes,
        "products_of_8_bits": products(program, ("s8",)),
        "products_of_float8": products(program, ("f8e4m3fn", "f8e5m2")),
        "products": products(program, ("bf16",)),
    }


def products(program: str, dtypes: tuple[str, ...]) -> int:
    """Products of two operands of these types (a TPU's program calls them convolutions)."""
    types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", program))
    types |= dict(re.findall(r"%?([\w.-]+): (\w+)\[", program))
    operands = re.findall(r" (?:convolution|dot)\(%([\w.-]+), %([\w.-]+)\)", program)
    return sum(types.get(a) in dtypes and types.get(b) in dtypes for a, b in operands)


def vocabulary(devices, form) -> dict:
    """The head alone: its collectives, and what it takes."""
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=len(devices)), devices)

    def array(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding.partition_spec(axes, Rules())))

    x = array((len(devices), 4096, DIM), jnp.bfloat16, "batch", "seq", None)
    table = array((VOCAB, DIM), jnp.float32, "vocab", "embed")
    targets = array((len(devices), 4096), jnp.int32, "batch", "seq")

    def loss(table, x, targets):
        with sharding.use(mesh, Rules()):
            return head.cross_entropy(Head(x, table.astype(jnp.bfloat16)), targets, form)[0].sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(table.sharding, x.sharding))
    compiled = gradients.lower(table, x, targets).compile()
    program = compiled.as_text()
    return {
        "scattered": re.findall(r"= (\w+\[[\d,]+\])\S* reduce-scatter\(", program),
        "reduced": re.findall(r"= (\w+\[[\d,]+\])\S* all-reduce\(", program),
        "whole_tables": len(re.findall(rf"\[(?:{VOCAB},{DIM}|{DIM},{VOCAB})\]", program)),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def devices(topology: str) -> list:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def heads() -> dict:
    many = devices("v5e:8x8")
    return {form: vocabulary(many, form) for form in ("whole", "blocks")}


def steps() -> dict:
    few, more = devices("v5e:2x2"), devices("v5e:2x4")
    return {
        "plain": step(few, model=SHORT),
        "offload_input": step(few, model=SHORT | {"compute": Compute(remat="offload_input")}),
        "offload_optimizer": step(few, model=SHORT, parallel={"offload_optimizer": True}),
        "int8": step(few, model=SHORT, precision={"matmul": "int8"}),
        "float8": step(more, precision={"matmul": "float8"}),
    }


def wide() -> dict:
    more = devices("v5e:2x4")
    return {str(there): step(more, model=WIDE, parallel={"offload_optimizer": there}) for there in (False, True)}


if __name__ == "__main__":
    print(json.dumps({"heads": heads, "steps": steps, "wide": wide}[sys.argv[1]]()))
