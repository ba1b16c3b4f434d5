"""Config changes that may make a run fit into memory. Each change is tried by compiling it."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core.sharding import AXES, axis_names, factor
from bigmodel_jax.models import compute
from bigmodel_jax.plan.compile import compile_step, used_bytes
from bigmodel_jax.plan.sums import cuts_sequence
from bigmodel_jax.plan.topology import Topology

SEQUENCE_CUT = ("seq", "tensor")  # mesh axes over which the residual stream's sequence dimension is sharded


@dataclasses.dataclass(frozen=True)
class Change:
    """One changed config, and the command-line options that produce it.

    options: as typed on the command line. config: the whole changed config.
    """

    options: str
    config: Config


def find(config: Config, topology: Topology, say: Callable[[str], None]) -> list[dict]:
    """Compile the candidate changes, the cheapest first, until one fits.

    Each dict has `options`, `fits`, `used` (bytes of one device) and, where the config was refused,
    `reason`. The last dict is the change that fits, if any does.
    """
    tried = []
    for change in candidates(config, topology):
        say(f"Trying {change.options}")
        try:
            found = compile_step(change.config, topology)
        except ValueError as error:  # only compiling shows some refusals, such as too little host memory
            tried.append({"options": change.options, "fits": False, "used": 0.0, "reason": str(error)})
            continue
        fits = bool(found.memory) and used_bytes(found) <= topology.chip.hbm
        tried.append({"options": change.options, "fits": fits, "used": used_bytes(found)})
        if fits:
            break
    return tried


def candidates(config: Config, topology: Topology) -> Iterator[Change]:
    """Configs that differ from `config` in one respect, those that cost least time first.

    Invalid candidates are left out.
    """
    for options, changed in (
        *_sequence(config, topology),
        *_schedule(config, topology),
        *_remat(config),
        *_microbatches(config, topology),
        *_offload(config),
        *_mesh(config, topology),
    ):
        if changed is not None and _valid(changed, topology):
            yield Change(options, changed)


def _valid(config: Config, topology: Topology) -> bool:
    try:
        validate(config, topology.devices)
    except ValueError:
        return False
    return True


def _sequence(config: Config, topology: Topology):
    """Shard the residual stream along the sequence where its heads are sharded over `tensor`."""
    if factor(config.parallel, topology.devices)[-1] > 1 and not cuts_sequence(config.parallel):
        yield f"--parallel.rules.residual_seq {' '.join(SEQUENCE_CUT)}", cut_sequence(config)


def _schedule(config: Config, topology: Topology):
    """Run the pipeline's backward passes as early as possible (the 1F1B schedule)."""
    if factor(config.parallel, topology.devices)[0] > 1 and config.parallel.pipeline_schedule != "1f1b":
        parallel = dataclasses.replace(config.parallel, pipeline_schedule="1f1b")
        yield "--parallel.pipeline_schedule 1f1b", dataclasses.replace(config, parallel=parallel)


def _remat(config: Config):
    """Recompute all activations; then also keep the layers' inputs in host memory."""
    now = compute.remat(config.model)
    for remat in ("full", "offload_input") if now else ():
        # A config that offloads keeps nothing on the device, so "full" would need more memory.
        if remat != now and not (remat == "full" and now.startswith("offload")):
            model = compute.changed(config.model, remat=remat)
            yield f"--model.compute.remat {remat}", dataclasses.replace(config, model=model)


def _microbatches(config: Config, topology: Topology):
    """Twice as many microbatches, four times as many, then as many as the batch has rows."""
    sizes = dict(zip(AXES, factor(config.parallel, topology.devices), strict=True))
    # Every microbatch needs a row on every device.
    most = config.train.batch_size // math.prod(sizes[axis] for axis in axis_names(config.parallel.rules.batch))
    now = config.train.microbatches
    for n in dict.fromkeys((2 * now, 4 * now, most)):
        if now < n <= most:
            train = dataclasses.replace(config.train, microbatches=n)
            yield f"--train.microbatches {n}", dataclasses.replace(config, train=train)


def cut_sequence(config: Config, axes: tuple[str, ...] = SEQUENCE_CUT) -> Config:
    """The config with the residual stream's sequence dimension sharded over `axes`."""
    rules = dataclasses.replace(config.parallel.rules, residual_seq=axes)
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, rules=rules))


def _offload(config: Config):
    """Keep the optimizer state in host memory."""
    if not config.parallel.offload_optimizer:
        parallel = dataclasses.replace(config.parallel, offload_optimizer=True)
        yield "--parallel.offload_optimizer True", dataclasses.replace(config, parallel=parallel)


def _mesh(config: Config, topology: Topology):
    """Turn data-parallel replicas into fsdp shards; then trade fsdp for tensor parallelism."""
    _, data, fsdp, _, _, tensor = factor(config.parallel, topology.devices)
    if data > 1:
        yield _with_mesh(config, data=1, fsdp=data * fsdp)
    for more in (2, 4, 8):
        if fsdp % more == 0:
            yield _with_mesh(config, data=data, fsdp=fsdp // more, tensor=tensor * more)


def _with_mesh(config: Config, **sizes: int):
    options = " ".join(f"--parallel.{axis} {size}" for axis, size in sizes.items())
    return options, dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **sizes))
