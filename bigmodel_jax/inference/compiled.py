"""The engine's compiled programs, one set per form of slots, mesh and weights."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel_jax.core import params, processes, sharding
from bigmodel_jax.core.sharding import Rules
from bigmodel_jax.inference.slots import Programs, Slots, trimmed
from bigmodel_jax.models.adapted import Matrix, matrix
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.decode_forms import flat_scales, transposed

# From this many bytes of weights on, a CPU decodes with unstacked layers. That halves the time per
# token (SmolLM2-135M), but the program has a copy of the layer per layer and takes longer to
# compile.
APART_FROM = 1 << 26


def _flat(p: params.Param, weight: Any) -> Any:
    found = _matrix(p)
    return flat_scales(weight, len(found.lead.shape) - 1, len(found.inner.shape)) if found else weight


def _inputs_last(p: params.Param, weight: Any) -> Any:
    found = _matrix(p)
    is_one = found and len(found.lead.shape) == 1  # of a layer, which has no experts
    return transposed(weight, len(found.inner.shape)) if is_one else weight


def _matrix(p: params.Param) -> Matrix | None:
    # A stored weight is a matrix, and has no decay that says so.
    return matrix("", dataclasses.replace(p, decay=True))


# The platforms that decode with unstacked layers, and the form of a weight there. A GPU or TPU
# would copy each layer out of its stack for every token.
APART_ON = {"gpu": _flat, "cuda": _flat, "rocm": _flat, "tpu": _inputs_last}


class Layout(NamedTuple):
    """An engine's mesh and its sharding rules. Slots are the batch."""

    mesh: Mesh
    rules: Rules = Rules()


class Compiled(NamedTuple):
    """The engine's jitted programs. See `Programs` for what they do."""

    empty: Any
    prefill: Any
    decode: Any
    row: Any  # makes an empty cache of one row, for a prompt read in pieces; `piece` and `begin` fill it
    piece: Any
    begin: Any
    trimmed: Any
    places: Slots | None  # shardings of the slots; None if the compiler chooses them


@functools.lru_cache(maxsize=8)
def compiled(programs: Programs, layout: Layout | None, mesh: Mesh | None, dtype: Any) -> Compiled:
    """The programs. In a job, no process runs `prefill` or `decode` before all have compiled
    them.
    """
    made = jitted(programs, layout, mesh, dtype)
    together = processes.compiled_together if layout else lambda program: program
    return made._replace(prefill=together(made.prefill), decode=together(made.decode))


def without_stages(mesh: Mesh) -> Mesh:
    """The mesh with the devices of "stage" added to "fsdp", in the same order.

    Each device holds as large a share of the weights as before.
    """
    sizes = {**mesh.shape, "stage": 1, "fsdp": mesh.shape["stage"] * mesh.shape["fsdp"]}
    return Mesh(mesh.devices.reshape(*sizes.values()), sharding.AXES, axis_types=mesh.axis_types)


def uncut(layout: Layout) -> Layout:
    """The layout without a sharded sequence and without stages.

    One token cannot be cut, so the devices of `seq` repeat each other's work.
    """
    rules = dataclasses.replace(layout.rules, seq=None, residual_seq=None)
    return Layout(without_stages(layout.mesh), rules)


def jitted(programs: Programs, layout: Layout | None, mesh: Mesh | None, dtype: Any) -> Compiled:
    """The jitted programs.

    All programs have the same shardings of the slots, so that no program compiles twice.

    mesh: the mesh of the weights, used without a layout. dtype: the cache's dtype.
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
        # Everything but the cache is small, so it is replicated.
        kept = kept._replace(cache=_cache_shardings(programs.kept(dtype), layout))
    return Compiled(
        jax.jit(traced(functools.partial(programs.empty, dtype)), out_shardings=kept),
        # The slots are donated, so that their cache is written in place and not copied.
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
    """The mesh of several devices that holds the weights; None if they are on one device."""
    meshes = [x.sharding.mesh for x in _arrays(weights) if isinstance(x.sharding, NamedSharding)]
    return meshes[0] if meshes and meshes[0].size > 1 else None


def on_layout(weights: Any, spec: params.Tree, layout: Layout) -> Any:
    """The weights on the layout's mesh. Only those of a mesh with stages move."""
    if mesh_of(weights) in (None, layout.mesh):
        return weights
    places = params.paths(sharding.shardings(spec, layout.mesh, layout.rules))
    return params.from_paths({path: jax.device_put(x, places[path]) for path, x in params.paths(weights).items()})


def platform_of(weights: Any) -> str:
    """The platform of the devices that hold the weights; "" without weights."""
    return next((device.platform for x in _arrays(weights)[:1] for device in x.devices()), "")


def is_apart(platform: str) -> bool:
    """Whether all programs of an engine take unstacked layers on this platform."""
    return platform in APART_ON


def for_decoding(spec: params.Tree, weights: Any, platform: str, layers_of: Callable | None = None) -> Any:
    """The weights in the form in which an engine's programs take them on this platform (APART_ON).

    The memory of the stacks is free as soon as the caller drops them. layers_of: as in
    `stack.apart`.
    """
    form = APART_ON.get(platform)
    return stack.apart(spec, weights, layers_of, form) if form else weights


def large_on_one_cpu(weights: Any) -> bool:
    """Whether the weights are on one CPU and have at least APART_FROM bytes."""
    devices = {device for x in _arrays(weights) for device in x.devices()}
    size = sum(x.nbytes for x in _arrays(weights))
    return size >= APART_FROM and len(devices) == 1 and devices.pop().platform == "cpu"
