"""The engine's programs, compiled once for each form of slots, mesh and weights."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel_jax.core import params, processes, sharding
from bigmodel_jax.core.sharding import Rules
from bigmodel_jax.inference.slots import Programs, Slots, trimmed

# From so many bytes of weights on, a CPU generates from layers that lie apart: half the time a token (SmolLM2-135M), for
# a program with a copy of the layer per layer, which takes longer to compile.
APART_FROM = 1 << 26


class Layout(NamedTuple):
    """The mesh of an engine, without stages, and what lies on which of its axes; the slots are the batch."""

    mesh: Mesh
    rules: Rules = Rules()


class Compiled(NamedTuple):
    empty: Any
    prefill: Any
    decode: Any
    row: Any  # of a prompt that is read in pieces: an empty row, and one piece, the last piece, a part of a prompt
    piece: Any
    begin: Any
    trimmed: Any
    places: Slots | None  # shardings of the slots that the programs give back; None where the compiler chooses them


@functools.lru_cache(maxsize=8)
def compiled(programs: Programs, layout: Layout | None, mesh: Mesh | None, dtype: Any) -> Compiled:
    """The programs, of which no process of a job runs prefill or decode before all have compiled it."""
    made = jitted(programs, layout, mesh, dtype)
    together = processes.compiled_together if layout else lambda program: program
    return made._replace(prefill=together(made.prefill), decode=together(made.decode))


def uncut(layout: Layout) -> Layout:
    """The layout with the sequence whole: one token has none to cut, and along `seq` all devices do the same."""
    return layout._replace(rules=dataclasses.replace(layout.rules, seq=None, residual_seq=None))


def jitted(programs: Programs, layout: Layout | None, mesh: Mesh | None, dtype: Any) -> Compiled:
    """The programs, each with the slots in one layout, so that none is compiled twice.

    mesh: that of the weights where there is no layout. dtype: of the cache.
    """

    def traced(fn):
        @functools.wraps(fn)
        def inside(*arguments, **more):
            if layout is None:
                return fn(*arguments, **more)
            with sharding.use(layout.mesh, layout.rules):
                return fn(*arguments, **more)

        return inside

    mesh = layout.mesh if layout else mesh
    kept = whole = None
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        kept = jax.tree.map(lambda _: whole, jax.eval_shape(functools.partial(programs.empty, dtype)))
    if layout is not None:
        kept = kept._replace(cache=_cache_shardings(programs.kept(dtype), layout))
    return Compiled(
        jax.jit(traced(functools.partial(programs.empty, dtype)), out_shardings=kept),
        jax.jit(traced(programs.prefill), out_shardings=kept, donate_argnums=1),
        jax.jit(traced(programs.decode), out_shardings=kept and (kept, whole), donate_argnums=1),
        jax.jit(lambda: params.empty(programs.declared(1, dtype))),
        jax.jit(traced(programs.piece), donate_argnums=1),
        jax.jit(traced(programs.begin), donate_argnums=(1, 2)),
        jax.jit(trimmed),
        kept,
    )


def _cache_shardings(declared: Any, layout: Layout) -> Any:
    def one(p: params.Param) -> NamedSharding:
        return NamedSharding(layout.mesh, sharding.fitting_spec(p.shape, *p.axes) if p.axes else PartitionSpec())

    with sharding.use(layout.mesh, layout.rules):
        return params.map_spec(one, declared)


def _arrays(weights: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(weights) if isinstance(x, jax.Array)]


def mesh_of(weights: Any) -> Mesh | None:
    """The mesh of several devices on which the weights lie; None where they lie on one."""
    meshes = [x.sharding.mesh for x in _arrays(weights) if isinstance(x.sharding, NamedSharding)]
    return meshes[0] if meshes and meshes[0].size > 1 else None


def large_on_one_cpu(weights: Any) -> bool:
    devices = {device for x in _arrays(weights) for device in x.devices()}
    size = sum(x.nbytes for x in _arrays(weights))
    return size >= APART_FROM and len(devices) == 1 and devices.pop().platform == "cpu"
