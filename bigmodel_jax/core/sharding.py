"""Maps logical axis names to a mesh, which always has six axes, by rules for each name."""

import contextlib
import dataclasses
import math
import threading
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Count, CountOrAll, CountOrZero

AXES = ("stage", "data", "fsdp", "expert", "seq", "tensor")

MeshAxes = str | tuple[str, ...] | None
Context = Literal["ring", "ulysses"]


@dataclasses.dataclass(frozen=True)
class Rules:
    """{logical axis: mesh axis, several mesh axes, or None for unsharded}.

    A new layout is another value of this class. Models do not change.
    """

    batch: MeshAxes = ("stage", "data", "fsdp", "expert")  # rows; "stage" and "expert" outside pipelines and experts
    seq: MeshAxes = "seq"  # the sequence inside a layer's products
    residual_seq: MeshAxes = "seq"  # the sequence of the residual stream, beside an unsharded "embed"
    layers: MeshAxes = "stage"  # the stack of layers
    vocab: MeshAxes = "tensor"  # rows of embedding tables and heads
    embed: MeshAxes = "fsdp"  # the model's width
    heads: MeshAxes = "tensor"  # query heads
    kv_heads: MeshAxes = "tensor"  # key and value heads; unsharded if fewer than devices
    head_dim: MeshAxes = None  # the width of one head
    mlp: MeshAxes = "tensor"  # the hidden width of MLPs
    experts: MeshAxes = "expert"  # the experts of a mixture


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """The size and the use of each mesh axis. One size may be -1, for all remaining devices."""

    stage: CountOrAll = 1  # pipeline stages
    data: CountOrAll = -1  # data-parallel replicas
    fsdp: CountOrAll = 1  # data-parallel shards of parameters and optimizer state
    expert: CountOrAll = 1  # shards of the experts
    seq: CountOrAll = 1  # pieces of the sequence
    tensor: CountOrAll = 1  # shards of heads, MLP width and vocabulary
    strategy: Literal["jit", "pmap"] = "jit"
    "jit: shardings by name, with the compiler's collectives; pmap: replicated data parallelism"
    rules: Rules = Rules()  # logical axis -> mesh axis
    context: Context = "ring"
    """attention over seq: keys travel around a ring (arXiv:2310.01889), or heads are exchanged for
    sequence (arXiv:2309.14509)"""
    pipeline_microbatches: CountOrZero = 0  # pieces of the batch in the pipeline; 0 = as many as stages
    pipeline_rounds: Count = 1  # times that a piece passes all stages; a stage holds as many groups of layers
    pipeline_schedule: Literal["gpipe", "1f1b"] = "gpipe"
    """gpipe: all forward passes, then all backward passes; 1f1b: each backward pass as early as
    possible, to save memory"""
    pipeline_remat: bool = False  # store only a stage's inputs, and recompute its layers in the backward pass
    offload_optimizer: bool = False  # keep the optimizer's moments in host memory between steps
    slices: Count = 1
    """groups of devices with fast links inside; the first of data, stage and fsdp that this number
    divides spans the slices"""
    slice_gradients: Literal["float32", "bfloat16"] = "float32"
    "dtype of gradients sent between slices; inside a slice they are float32"
    deterministic: bool = False
    "sum gradients, loss, metrics in one order on any number of devices (axes data, fsdp only)"
    deterministic_groups: Count = 16
    "pieces of the batch whose gradients are added in that order; a power of 2"

    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, a) for a in AXES)


def factor(parallel: ParallelConfig, num_devices: int) -> tuple[int, ...]:
    """The six axis sizes with -1 computed. Raises ValueError if their product is not
    `num_devices`."""
    sizes = parallel.sizes()
    given = " x ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True) if n != 1) or "all axes 1"
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise ValueError(f"parallel: {given}: sizes are positive, and at most one may be -1 (all remaining devices)")
    known = math.prod(n for n in sizes if n != -1)
    if known > num_devices:
        raise ValueError(f"parallel: {given} needs {known} devices, but only {num_devices} are present")
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ValueError(f"parallel: {given} takes {known} of the devices, but it must fill all {num_devices} devices")
    return tuple(num_devices // known if n == -1 else n for n in sizes)


def slice_axis(parallel: ParallelConfig, sizes: tuple[int, ...]) -> str:
    """The mesh axis that spans slices: the first whose size they divide, by increasing traffic."""
    for axis in ("data", "stage", "fsdp"):
        if sizes[AXES.index(axis)] % parallel.slices == 0:
            return axis
    given = " x ".join(f"{a}={sizes[AXES.index(a)]}" for a in ("data", "stage", "fsdp"))
    raise ValueError(f"parallel.slices = {parallel.slices} must divide one of {given}, the axis across slices")


def make_mesh(parallel: ParallelConfig, devices: list | None = None) -> Mesh:
    """A mesh of `devices` (default: all) with all six named axes, of type Auto."""
    devices = jax.devices() if devices is None else devices
    sizes = factor(parallel, len(devices))
    at = AXES.index(slice_axis(parallel, sizes))
    inside = (*sizes[:at], sizes[at] // parallel.slices, *sizes[at + 1 :])
    # Splitting physical axes allows mesh shapes that do not follow the torus of the machine.
    blocks = [
        mesh_utils.create_device_mesh(inside, block, allow_split_physical_axes=True)
        for block in _slices(parallel.slices, devices)
    ]
    return Mesh(np.stack(blocks, axis=at).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(num: int, devices: list) -> list[list]:
    """The devices of each slice, by their `slice_index`; without one, contiguous blocks of
    devices."""
    known = sorted({d.slice_index for d in devices if hasattr(d, "slice_index")})
    if len(known) <= 1:  # the devices report no slices, or one
        size = len(devices) // num
        return [devices[i * size : (i + 1) * size] for i in range(num)]
    if len(known) != num:
        raise ValueError(f"parallel.slices = {num}, but the devices present are in {len(known)} slices")
    return [[d for d in devices if d.slice_index == i] for i in known]


def axis_names(axes: MeshAxes) -> tuple[str, ...]:
    """The mesh axes of a rule as a tuple."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def partition_spec(logical: tuple[str | None, ...], rules: Rules, *, strict: bool = True) -> P:
    """The PartitionSpec of a tuple of logical names.

    strict: raise ValueError if two dimensions claim one mesh axis (for parameters). Otherwise the
    first dimension gets it. This is for activations, whose batch is sharded over fsdp, so that an
    "embed" beside it stays unsharded. A name like "mlp+embed" is sharded over the axes of both
    parts.
    """
    used: dict[str, str] = {}
    out = []
    for name in logical:
        parts = name.split("+") if name else ()
        if unknown := [part for part in parts if not hasattr(rules, part)]:
            allowed = ", ".join(f.name for f in dataclasses.fields(rules))
            raise ValueError(f"logical axis {unknown[0]!r} has no rule; known: {allowed}")
        axes = tuple(dict.fromkeys(axis for part in parts for axis in axis_names(getattr(rules, part))))
        for axis in axes:
            if axis in used and strict:
                raise ValueError(
                    f"logical axes {used[axis]!r} and {name!r} of {logical} both lie on mesh axis {axis!r}"
                )
        axes = tuple(a for a in axes if a not in used)
        used |= dict.fromkeys(axes, name)
        out.append(axes[0] if len(axes) == 1 else axes or None)
    return P(*out)


def shardings(spec: params.Tree, mesh: Mesh, rules: Rules) -> params.Tree:
    """The NamedSharding of every parameter.

    A dimension that fsdp does not divide stays unsharded, since fsdp only saves memory. The same
    holds for kv heads: if there are fewer than devices, every device has all of them. A dimension
    "mlp+embed" drops its last name first. Any other axis that does not divide its dimension raises
    ValueError with the parameter's name.
    """

    def one(path: str, p: params.Param) -> NamedSharding:
        dims = []
        for size, name, axes in zip(p.shape, p.axes, partition_spec(p.axes, rules), strict=True):
            n = math.prod(mesh.shape[a] for a in axis_names(axes))
            while size % n and "+" in (name or ""):
                name = name.rpartition("+")[0]
                (axes,) = partition_spec((name,), rules)
                n = math.prod(mesh.shape[a] for a in axis_names(axes))
            if size % n and (axes == "fsdp" or name == "kv_heads"):
                axes = None
            elif size % n:
                raise ValueError(
                    f"parallel.{axes}: {n} does not divide dimension {name!r} of {path}, which is {size} long; "
                    f"--parallel.rules.{name} None leaves it whole on every device"
                )
            dims.append(axes)
        return p.storage.shardings(NamedSharding(mesh, P(*dims)), p.shape)

    return params.from_paths({path: one(path, p) for path, p in params.paths(spec).items()})


def placed(spec: params.Tree, mesh: Mesh, parallel: ParallelConfig) -> params.Tree:
    """Like `shardings`. With pmap, every parameter is replicated on every device."""
    if parallel.strategy == "pmap":
        return params.map_spec(lambda p: p.storage.shardings(replicated(mesh), p.shape), spec)
    return shardings(spec, mesh, parallel.rules)


def uncut(parallel: ParallelConfig, size: int, logical: str) -> str:
    """The mesh axes of `logical`, as "parallel.tensor = 2", if they do not divide `size`; else
    ""."""
    axes = axis_names(getattr(parallel.rules, logical))
    if axes == ("fsdp",) or size % math.prod(max(getattr(parallel, axis), 1) for axis in axes) == 0:
        return ""
    return " x ".join(f"parallel.{axis} = {getattr(parallel, axis)}" for axis in axes if getattr(parallel, axis) > 1)


def batch_sharding(mesh: Mesh, rules: Rules, axes: tuple[str | None, ...] = ()) -> NamedSharding:
    """The sharding of a batch array; axes: logical names of a row's dimensions, () for none."""
    return NamedSharding(mesh, partition_spec(("batch", *axes), rules))


def batch_shards(mesh: Mesh, rules: Rules) -> int:
    """The number of shards of the batch dimension."""
    return math.prod(mesh.shape[a] for a in axis_names(rules.batch))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


_context = threading.local()


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules, parallel: ParallelConfig | None = None):
    """A context in which a step is traced: inside it `constrain` knows mesh and rules, outside it
    does nothing.

    parallel: further settings that layers read (attention over seq, the pipeline); None = the
    defaults.
    """
    previous = getattr(_context, "value", None)
    _context.value = (mesh, rules, parallel)
    try:
        yield
    finally:
        _context.value = previous


def current_mesh() -> Mesh | None:
    """The mesh of the step being traced; None outside `use`."""
    value = getattr(_context, "value", None)
    return value and value[0]


def current() -> tuple[Mesh | None, Rules | None, ParallelConfig | None]:
    """(mesh, rules, parallel) that `use` got for the step being traced; (None, None, None)
    outside."""
    return getattr(_context, "value", None) or (None, None, None)


def current_context() -> Context:
    """How the step being traced computes attention over a sharded sequence."""
    parallel = current()[2]
    return "ring" if parallel is None else parallel.context


def fitting_spec(shape: tuple[int, ...], *logical: str | None) -> P:
    """The PartitionSpec of an activation of this shape, inside `use`.

    The sequence beside an unsharded "embed" follows the rule `residual_seq`. If the mesh axes do
    not divide a size, the last of them are dropped until they do, for example at batch size 1 in
    generation.
    """
    mesh, rules, _ = _context.value
    if logical[-1] == "embed":
        logical = tuple("residual_seq" if name == "seq" else name for name in logical)
    spec = partition_spec(logical, rules, strict=False)
    return P(*(_fitting(size, axis_names(axes), mesh) for size, axes in zip(shape, spec, strict=True)))


def _fitting(size: int, axes: tuple[str, ...], mesh: Mesh) -> MeshAxes:
    while size % math.prod(mesh.shape[a] for a in axes):
        axes = axes[:-1]
    return axes[0] if len(axes) == 1 else axes or None


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrains an activation's sharding by logical names; the identity on one device or outside
    `use`."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return x
    return pin(x, fitting_spec(x.shape, *logical))


def pin(tree: Any, specs: Any) -> Any:
    """Constrains each leaf to a PartitionSpec on the traced step's mesh, also in a shard_map."""
    here = jax.sharding.get_abstract_mesh()
    mesh = here if here.manual_axes else current_mesh()
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))


def to_host(tree: Any) -> Any:
    """The tree as numpy arrays, each one whole in every process."""

    def one(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)
