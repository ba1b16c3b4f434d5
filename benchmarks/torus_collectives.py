"""How the TPU compiler implements FSDP on a whole torus: two products in scanned layers.

    uv run --extra plan benchmarks/torus_collectives.py v5e:4x4 v5p:4x4x4 tpu7x:4x4x4

Parameters are sharded over all chips. It compiles for chips that do not exist here. For each
topology and form it prints one row: the number of collectives of each kind in a step, megabytes of
their buffers, and megabytes that a device sends in a ring. The forms are: `one axis`, the
compiler's own, with all chips on one mesh axis; `torus axes`, the same with a mesh axis per
dimension of the torus; `by hand`, a gather and a reduce-scatter per torus axis under shard_map; and
the first form with compiler options.
"""

import os

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

import collections
import functools
import math
import re
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.plan.program import hlo

LAYERS, DIM, MLP, ROWS = 4, 2048, 8192, 64
OPTIONS = {
    "no 3-D reduce-scatter decomposer": {"xla_tpu_enable_3d_reduce_scatter_decomposer": False},
    "no async fusion of all-gathers": {"xla_tpu_enable_async_collective_fusion_fuse_all_gather": False},
    "optimization_level O0": {"optimization_level": "O0"},
}


def loss(weights, x, gather):
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ gather(w["up"])) @ gather(w["down"])), None

    # Full remat, as in large models: each weight is gathered in the forward and in the backward
    # pass.
    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, weights)[0].astype(jnp.float32))


def compiler_form(mesh: Mesh):
    """The form that gives the compiler only shardings."""
    axes = mesh.axis_names
    where = NamedSharding(mesh, P(None, axes, None))

    def step(weights, x):
        grads = jax.grad(loss)(weights, x, lambda w: w)
        return jax.lax.with_sharding_constraint(grads, where)

    return jax.jit(step, out_shardings=where), where, NamedSharding(mesh, P(axes))


def by_hand(mesh: Mesh):
    """The form that gathers along each torus axis in turn, last axis first; gradients scatter in
    reverse."""
    axes = mesh.axis_names

    def gather(w):
        for axis in reversed(axes):
            w = jax.lax.all_gather(w, axis, tiled=True)
        return w

    cut = P(None, axes, None)
    step = jax.shard_map(
        functools.partial(jax.grad(loss), gather=gather),
        mesh=mesh,
        in_specs=(cut, P(axes)),
        out_specs=cut,
        check_vma=False,
    )
    return jax.jit(step), NamedSharding(mesh, cut), NamedSharding(mesh, P(axes))


def row(name: str, form, mesh: Mesh, options: dict | None = None) -> str:
    step, where, rows = form(mesh)
    shapes = {"up": (LAYERS, DIM, MLP), "down": (LAYERS, MLP, DIM)}
    weights = {k: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=where) for k, s in shapes.items()}
    x = jax.ShapeDtypeStruct((ROWS * mesh.size, DIM), jnp.bfloat16, sharding=rows)
    start = time.perf_counter()
    try:
        text = step.lower(weights, x).compile(compiler_options=options).as_text()
    except jax.errors.JaxRuntimeError as error:
        return f"| {name} | {str(error).splitlines()[0][:80]} | | | |"
    seconds = time.perf_counter() - start
    found = hlo.collectives(text, mesh)
    kinds = collections.Counter()
    for c in found:
        kinds[c.kind] += c.count
    emitters = sorted(set(re.findall(r'"emitter":"(\w*)"', text)))
    kinds_text = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    moved, sent = sum(c.count * c.bytes for c in found) / 1e6, sum(c.sent for c in found) / 1e6
    return f"| {name} | {kinds_text} | {moved:.0f} | {sent:.0f} | {seconds:.0f} | {' '.join(emitters)} |"


def main(names: list[str]) -> None:
    owed = 2 * LAYERS * DIM * MLP * 2 / 1e6
    print(
        f"owed: {2 * 2 * LAYERS} all-gathers and {2 * LAYERS} reduce-scatters, {3 * owed:.0f} MB of buffers, "
        f"about {3 * owed:.0f} MB sent"
    )
    print("| form | collectives a step | MB | MB sent | compile s | emitters |\n| --- | --- | --- | --- | --- | --- |")
    for name in names:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
        torus = [int(n) for n in name.partition(":")[2].split("x")]
        cores = len(devices) // math.prod(torus)
        torus += [cores] if cores > 1 else []
        axes = ("x", "y", "z", "core")[: len(torus)]
        array = mesh_utils.create_device_mesh(torus, devices)
        by_torus = Mesh(array, axes, axis_types=(AxisType.Auto,) * len(axes))
        flat = Mesh(array.reshape(-1), ("fsdp",), axis_types=(AxisType.Auto,))
        print(row(f"{name}, one axis", compiler_form, flat), flush=True)
        print(row(f"{name}, torus axes", compiler_form, by_torus), flush=True)
        print(row(f"{name}, by hand", by_hand, by_torus), flush=True)
        for label, options in OPTIONS.items():
            print(row(f"{name}, {label}", compiler_form, flat, options), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["v5e:4x4", "v5p:4x4x4"])
