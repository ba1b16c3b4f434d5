"""From logical names to a mesh: six axes, always; rules say which logical name lies on which axis."""

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
    """Logical name -> mesh axis (or axes, or None for whole). A new layout is a new value here, no model changes."""

    # Outside the layers a pipeline's stages, and outside the experts their devices, share the batch as well.
    batch: MeshAxes = ("stage", "data", "fsdp", "expert")
    seq: MeshAxes = "seq"
    residual_seq: MeshAxes = "seq"  # the sequence between products, where a whole "embed" stands beside it
    layers: MeshAxes = "stage"
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    mlp: MeshAxes = "tensor"
    experts: MeshAxes = "expert"


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Size of each mesh axis; one of them may be -1: all remaining devices."""

    stage: CountOrAll = 1
    data: CountOrAll = -1
    fsdp: CountOrAll = 1
    expert: CountOrAll = 1
    seq: CountOrAll = 1
    tensor: CountOrAll = 1
    strategy: Literal["jit", "pmap"] = "jit"
    "jit: shardings by name, the compiler adds the collectives; pmap: the classic replicated data-parallel step"
    rules: Rules = Rules()
    context: Context = "ring"
    "over seq: keys travel around a ring (arXiv:2310.01889), or heads are exchanged for the sequence (arXiv:2309.14509)"
    pipeline_microbatches: CountOrZero = 0  # pieces of the batch in the pipeline over `stage`; 0 = as many as stages
    pipeline_rounds: Count = 1  # how often a piece passes all stages; a stage holds so many groups of layers
    pipeline_schedule: Literal["gpipe", "1f1b"] = "gpipe"
    "backward passes after all forward passes, or each as soon as it can, so that few microbatches wait for theirs"
    pipeline_remat: bool = False  # keep only what enters a stage, and compute its layers again in the backward pass
    offload_optimizer: bool = False  # the optimizer's moments wait in the host's memory from step to step
    slices: Count = 1
    "groups of devices with fast links inside; the first of data, stage and fsdp that they divide goes across them"
    slice_gradients: Literal["float32", "bfloat16"] = "float32"
    "what gradients travel in across slices; inside one they are float32"
    deterministic: bool = False
    "gradients, loss and metrics summed in one order on any number of devices (data and fsdp)"
    deterministic_groups: Count = 16
    "the batch's fixed pieces whose gradients are added up in that order; a power of 2"

    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, a) for a in AXES)


def factor(parallel: ParallelConfig, num_devices: int) -> tuple[int, ...]:
    """The six axis sizes with -1 resolved; ValueError where they do not make up `num_devices`."""
    sizes = parallel.sizes()
    given = " x ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True) if n != 1) or "all axes 1"
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise ValueError(f"parallel: {given}: sizes are positive, and at most one may be -1 (all remaining devices)")
    known = math.prod(n for n in sizes if n != -1)
    if known > num_devices:
        raise ValueError(f"parallel: {given} needs {known} devices, but only {num_devices} are present")
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ValueError(f"parallel: {given} makes {known}, which does not make up the {num_devices} devices")
    return tuple(num_devices // known if n == -1 else n for n in sizes)


def slice_axis(parallel: ParallelConfig, sizes: tuple[int, ...]) -> str:
    """The mesh axis that goes across slices: the outermost that they divide, by how little it moves."""
    for axis in ("data", "stage", "fsdp"):
        if sizes[AXES.index(axis)] % parallel.slices == 0:
            return axis
    given = " x ".join(f"{a}={sizes[AXES.index(a)]}" for a in ("data", "stage", "fsdp"))
    raise ValueError(f"parallel.slices = {parallel.slices} divides none of {given}, one of which goes across slices")


def make_mesh(parallel: ParallelConfig, devices: list | None = None) -> Mesh:
    """A mesh of `devices` (default: all) with all six axes, by name, of type Auto."""
    devices = jax.devices() if devices is None else devices
    sizes = factor(parallel, len(devices))
    at = AXES.index(slice_axis(parallel, sizes))
    inside = (*sizes[:at], sizes[at] // parallel.slices, *sizes[at + 1 :])
    # An axis may share a dimension of the torus with another: a mesh need not be one that the machine's shape suggests.
    blocks = [
        mesh_utils.create_device_mesh(inside, block, allow_split_physical_axes=True)
        for block in _slices(parallel.slices, devices)
    ]
    return Mesh(np.stack(blocks, axis=at).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(num: int, devices: list) -> list[list]:
    """The devices of each slice, as they say it themselves; of devices that know no slice, contiguous blocks."""
    known = sorted({d.slice_index for d in devices if hasattr(d, "slice_index")})
    if len(known) <= 1:  # none to be seen
        size = len(devices) // num
        return [devices[i * size : (i + 1) * size] for i in range(num)]
    if len(known) != num:
        raise ValueError(f"parallel.slices = {num}, but the devices present are in {len(known)} slices")
    return [[d for d in devices if d.slice_index == i] for i in known]


def axis_names(axes: MeshAxes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def partition_spec(logical: tuple[str | None, ...], rules: Rules, *, strict: bool = True) -> P:
    """PartitionSpec of a tuple of logical names.

    strict: a mesh axis claimed by two dimensions is a ValueError (parameters). Otherwise the first dimension keeps it
    (activations: the batch lies on fsdp, so an "embed" beside it stays whole). "mlp+embed" lies on the axes of both.
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
    """NamedSharding of every parameter.

    A dimension that its fsdp axis does not divide is left whole (fsdp is only storage), and so are kv heads: every device
    has all of them where there are fewer than devices. Of "mlp+embed" the last name gives way first. Any other axis that
    does not divide its dimension is a ValueError naming the parameter.
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
    """`shardings`, or under pmap every parameter whole on every device."""
    if parallel.strategy == "pmap":
        return params.map_spec(lambda p: p.storage.shardings(replicated(mesh), p.shape), spec)
    return shardings(spec, mesh, parallel.rules)


def uncut(parallel: ParallelConfig, size: int, logical: str) -> str:
    """The axes on which the rules lay `logical`, as "parallel.tensor = 2", where they do not divide `size`; else ''."""
    axes = axis_names(getattr(parallel.rules, logical))
    if axes == ("fsdp",) or size % math.prod(max(getattr(parallel, axis), 1) for axis in axes) == 0:
        return ""
    return " x ".join(f"parallel.{axis} = {getattr(parallel, axis)}" for axis in axes if getattr(parallel, axis) > 1)


def batch_sharding(mesh: Mesh, rules: Rules, axes: tuple[str | None, ...] = ()) -> NamedSharding:
    """Sharding of a batch array; axes: the logical names of one row's dimensions, () where none has one."""
    return NamedSharding(mesh, partition_spec(("batch", *axes), rules))


def batch_shards(mesh: Mesh, rules: Rules) -> int:
    """Number of pieces that the batch dimension is cut into."""
    return math.prod(mesh.shape[a] for a in axis_names(rules.batch))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


_context = threading.local()


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules, parallel: ParallelConfig | None = None):
    """While a step is traced inside it, `constrain` knows mesh and rules; outside, `constrain` does nothing.

    parallel: whose further choices the layers follow (attention over seq, the pipeline); None: its defaults.
    """
    previous = getattr(_context, "value", None)
    _context.value = (mesh, rules, parallel)
    try:
        yield
    finally:
        _context.value = previous


def current_mesh() -> Mesh | None:
    """The mesh of the step being traced, or None outside `use`."""
    value = getattr(_context, "value", None)
    return value and value[0]


def current() -> tuple[Mesh | None, Rules | None, ParallelConfig | None]:
    """What `use` was told, of the step being traced."""
    return getattr(_context, "value", None) or (None, None, None)


def current_context() -> Context:
    """How the step being traced attends to a sequence that is cut over devices."""
    parallel = current()[2]
    return "ring" if parallel is None else parallel.context


def fitting_spec(shape: tuple[int, ...], *logical: str | None) -> P:
    """PartitionSpec of an activation of this shape inside `use`.

    The sequence beside a whole "embed" lies by `residual_seq`. A size that its axes do not divide keeps the first of
    them that do, or stays whole: batch 1 at generation, say.
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
    """Pins the layout of an activation by logical names; the identity on one device and outside `use`."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return x
    return pin(x, fitting_spec(x.shape, *logical))


def pin(tree: Any, specs: Any) -> Any:
    """The tree laid out by a PartitionSpec per leaf on the mesh of the step being traced, inside a manual region too."""
    here = jax.sharding.get_abstract_mesh()
    mesh = here if here.manual_axes else current_mesh()
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))


def to_host(tree: Any) -> Any:
    """The tree as numpy arrays; in every process the whole of each array."""

    def one(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)
