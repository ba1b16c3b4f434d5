"""The worker process of a plan: lower and compile a run's train step for absent devices.

It is started as `python -m bigmodel_jax.plan.worker REQUEST ANSWER`. Both are JSON files. Only
`compile.py` starts it, since its environment must be set before JAX is imported.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding, trust
from bigmodel_jax.core.compiler_options import compiler_options
from bigmodel_jax.data import fields
from bigmodel_jax.data.fields import Field
from bigmodel_jax.models import compute
from bigmodel_jax.plan import roofline
from bigmodel_jax.plan import topology as topologies
from bigmodel_jax.plan.program import cost, hlo, memory
from bigmodel_jax.plan.program.instructions import Code
from bigmodel_jax.report.throughput import step_flops, step_size, unseen_flops
from bigmodel_jax.training.rollout_arrays import log_prob_fields
from bigmodel_jax.training.state import TrainState, abstract_constants, abstract_state
from bigmodel_jax.training.step import make_train_step


def answer_with(run: Callable[[dict], dict], request_path: str, answer_path: str) -> None:
    """Read a JSON request, and write the answer of `run` or the mistake that it raised."""
    trust.allow()  # the parent process has already opened this config
    request = json.loads(Path(request_path).read_text())
    try:
        answer = run(request)
    except ValueError as error:
        answer = {"mistake": str(error)}
    Path(answer_path).write_text(json.dumps(answer))


def run(request: dict) -> dict:
    """Compile the requested step, or find it in the cache under its key.

    Returns its key, the sizes and FLOPs of the step, and what its text says.
    """
    config = config_file.from_json(request["config"])
    topology = topologies.parse(request["topology"], request["slices"])
    devices = topologies.compile_devices(topology)
    validate(config, len(devices))
    if config.parallel.strategy != "jit":
        raise ValueError(f"parallel.strategy = {config.parallel.strategy!r}: plan supports only 'jit'")
    mesh = sharding.make_mesh(config.parallel, devices)
    state, batch = abstract_state(config, mesh), abstract_batch(config, mesh)
    constants = abstract_constants(config, mesh)
    begun = time.perf_counter()
    lowered = make_train_step(config, mesh).lower(state, batch, constants)
    lower_seconds = time.perf_counter() - begun
    key = cache_key(lowered.as_text(), topology, compiler_options(devices[0]))
    folder = Path(request["cache"]) / key
    cached = (folder / "compiled.json").is_file()
    if not cached:
        compile_into(folder, lowered, lower_seconds)
    flops, attention = model_flops(config, mesh, batch)
    program = analyse(folder, config, mesh, topology) if (folder / "hlo.txt.gz").is_file() else {}
    return {
        "program": program,
        "key": key,
        "cached": cached,
        "sizes": sizes(state, batch, constants, kept_beside(config)) | {"rollout_cache": cache_bytes(config, mesh)},
        "model_flops": flops,
        "attention_flops": attention,
        "tokens": step_size(config.data, batch)[0],
        "mesh": dict(mesh.shape),
    }


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a batch."""
    rows, rules = config.train.batch_size, config.parallel.rules

    def one(field: Field) -> jax.ShapeDtypeStruct:
        place = sharding.batch_sharding(mesh, rules, field.axes)
        return jax.ShapeDtypeStruct((rows, *field.shape), field.dtype, sharding=place)

    row = fields.complete(config.data, config.model.inputs()) | computed(config)
    return {name: one(field) for name, field in row.items()}


def computed(config: Config) -> dict[str, Field]:
    """Arrays that a run adds to the data's batch before a step."""
    return config.objective.computed() | (log_prob_fields(config) if config.data.prompts else {})


def coords(device: Any) -> list[int]:
    """[slice or host number, *position in the torus] of a device."""
    group = getattr(device, "slice_index", 0) if device.platform == "tpu" else device.process_index
    return [group or 0, *(getattr(device, "coords", None) or ())]


def cache_key(text: str, topology: topologies.Topology, options: dict[str, str]) -> str:
    """A hash of the lowered program and everything else that affects its compilation."""
    compiler = "libtpu" if topology.chip.platform == "tpu" else "jax-cuda13-plugin"
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", compiler)]
    facts = json.dumps([topology.name, topology.slices, options, versions], sort_keys=True)
    return hashlib.sha256(f"{facts}\n{text}".encode()).hexdigest()[:24]


def compile_into(folder: Path, lowered: Any, lower_seconds: float) -> None:
    """Compile, and write compiled.json and (where the program fits) hlo.txt.gz into `folder`.

    lower_seconds: the seconds that lowering took, which compiled.json holds too. The folder appears
    complete or not at all.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        compiled, refused = lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, refused = None, str(error)
    facts = {
        "lower_seconds": lower_seconds,
        "compile_seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "refused": refused,
    }
    # Write into a temporary folder and rename it, so that readers see all files or none.
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True, exist_ok=True)
    if compiled is not None:
        usage = compiled.memory_analysis()
        facts["memory"] = {
            name.removesuffix("_in_bytes").removesuffix("_size"): getattr(usage, name)
            for name in dir(usage)
            if name.endswith("_in_bytes")
        }
        (partial / "hlo.txt.gz").write_bytes(gzip.compress(compiled.as_text().encode(), 6))
    (partial / "compiled.json").write_text(json.dumps(facts))
    try:
        partial.rename(folder)
    except OSError:  # another process wrote the same content first
        if not (folder / "compiled.json").is_file():
            raise


# ------------------------------------------------------------ what the program says


def analyse(
    folder: Path, config: Config, mesh: jax.sharding.Mesh, topology: topologies.Topology, every: bool = False
) -> dict:
    """FLOPs, bytes, collectives and the largest buffers of the compiled program in `folder`.

    every: as in `cost.measure`.
    """
    text = gzip.decompress((folder / "hlo.txt.gz").read_bytes()).decode()
    code = Code(text, causal=config.objective.causal)
    bandwidth = topology.chip.hbm_bandwidth / topology.chip.devices
    measured = cost.measure(code, topology.chip.peak, bandwidth, topology.chip.clock, code.program.frames.line, every)
    beside = asynchronous_channels(code)
    rows = []
    for one in hlo.collectives(text, mesh):
        members = [coords(mesh.devices.flat[position]) for position in one.members]
        network, seconds = roofline.seconds(one, members, topology)
        facts = dataclasses.asdict(one) | {"sent": one.sent, "network": network, "seconds": seconds}
        rows.append(facts | {"asynchronous": one.across or one.channel in beside})
    return {"cost": dataclasses.asdict(measured), "collectives": rows, "memory": memory.summary(code)}


def asynchronous_channels(code: Code) -> set[int]:
    """Channels of asynchronous collectives, which may overlap with computation."""
    found = set()
    for name, body in code.bodies.items():
        for one in body.values():
            # An asynchronous collective prints as a start, or inside an async computation.
            if one.opcode.endswith("-start") or "async" in name or "async" in one.name:
                found |= {int(n) for n in re.findall(r"channel_id=(\d+)", one.rest)}
    return found


# ------------------------------------------------------------ what is known without compiling


def sizes(state: TrainState, batch: dict, constants: params.Tree, beside: Collection[str] = ()) -> dict[str, float]:
    """Bytes on one device of the step's arguments and gradients.

    `host`: bytes in host memory. `checkpoint`: bytes of the whole state, each array once. Constants
    are parameters without gradients that no checkpoint holds. `constants` are those named in
    `beside`, which belong to the objective. `base` are the others.
    """
    parts = {
        "parameters": (state.params, state.frozen, constants),
        "base": {name: part for name, part in constants.items() if name not in beside},
        "constants": {name: part for name, part in constants.items() if name in beside},
        "optimizer": (state.opt_state, state.step),
        "average": state.ema,
        "batch": batch,
    }
    out = {name: sum(_bytes(x) for x in jax.tree.leaves(tree) if not _on_host(x)) for name, tree in parts.items()}
    out["host"] = sum(_bytes(x) for x in jax.tree.leaves(state) if _on_host(x))
    out["checkpoint"] = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    # Gradients are summed in float32 (training/step.py) and sharded like the parameters.
    out["gradients"] = sum(_bytes(x, itemsize=4) for x in jax.tree.leaves(state.params))
    return out


def kept_beside(config: Config) -> Collection[str]:
    """Names of the parameters that the objective keeps beside the model's."""
    return config.objective.parameters(config.model).keys()


def cache_bytes(config: Config, mesh: jax.sharding.Mesh) -> float:
    """Bytes on one device of the rollouts' decode cache; 0 without rollouts.

    The cache is alive during the step.
    """
    size = config.objective.rollout_cache(config.data, config.train.batch_size)
    if size is None:
        return 0.0
    declared = config.make_model().make_cache(*size, config.precision.compute)
    leaves = jax.tree.leaves(declared, is_leaf=lambda x: isinstance(x, params.Param))
    with sharding.use(mesh, config.parallel.rules, config.parallel):
        places = [jax.sharding.NamedSharding(mesh, _place(p)) for p in leaves]
    return sum(
        _bytes(jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=place)) for p, place in zip(leaves, places, strict=True)
    )


def _place(p: params.Param) -> jax.sharding.PartitionSpec:
    return sharding.fitting_spec(p.shape, *p.axes) if p.shape else jax.sharding.PartitionSpec()


def _bytes(x: jax.ShapeDtypeStruct, itemsize: int = 0) -> float:
    return math.prod(x.sharding.shard_shape(x.shape)) * (itemsize or x.dtype.itemsize)


def _on_host(x: jax.ShapeDtypeStruct) -> bool:
    return x.sharding.memory_kind in ("pinned_host", "unpinned_host")


def model_flops(config: Config, mesh: jax.sharding.Mesh, batch: dict) -> tuple[float, float]:
    """(useful FLOPs of a step on all devices, the part of them in attention).

    They are counted as in report/throughput.py. Experts count for the tokens that are sent to them.
    Attention is the part that grows quadratically with the sequence length.
    """
    # Expert capacity pads the experts' batches, which is not useful work.
    if hasattr(config.model, "capacity_factor"):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, capacity_factor=0.0))
    attends = isinstance(compute.of(config.model), compute.Compute)
    return _flops(config, mesh, batch), _attention(config, mesh, batch) if attends else 0.0


def _attention(config: Config, mesh, batch: dict) -> float:
    """FLOPs that would grow with the square of the sequence length without windows."""
    row = {**config.data.row(), **computed(config)}
    lengths = set(fields.along(row, "seq").values())
    # Halving needs one length for all arrays, and an even one.
    if len(lengths) != 1 or lengths.pop() % 2:
        return 0.0

    def halved(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = ("batch", *row[name].axes) if name in row else ()
        shape = [n // 2 if i < len(axes) and axes[i] == "seq" else n for i, n in enumerate(x.shape)]
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=x.sharding)

    half = {name: halved(name, x) for name, x in batch.items()}
    # Counting at full and at half length separates the quadratic part from the linear part.
    # `unseen` are FLOPs of query-key pairs that a window hides. Windowed attention is not
    # quadratic, so they are added before the comparison and subtracted after it.
    unseen, unseen_in_half = (3.0 * unseen_flops(config, rows) for rows in (batch, half))
    whole = _flops(config, mesh, batch) + unseen
    return 2.0 * (whole - 2.0 * (_flops(config, mesh, half) + unseen_in_half)) - unseen


def _flops(config: Config, mesh, batch: dict) -> float:
    # On several devices each expert's buffer has room for tokens of other devices. Products with
    # that room are not useful FLOPs.
    alone = sharding.make_mesh(sharding.ParallelConfig(data=1), list(mesh.devices.flat[:1]))
    with sharding.use(alone, config.parallel.rules):
        return step_flops(config, params.abstract(config.make_model().spec), batch)


if __name__ == "__main__":
    answer_with(run, *sys.argv[1:])
