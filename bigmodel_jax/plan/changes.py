"""Single changes of a config that make it fit, each tried by compiling it."""

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

SEQUENCE_CUT = ("seq", "tensor")


@dataclasses.dataclass(frozen=True)
class Change:
    """`option` set to `value`; options: as they are typed."""

    options: str
    config: Config


def find(config: Config, topology: Topology, say: Callable[[str], None]) -> list[dict]:
    """Changes in the order of what they cost, each compiled, up to the first that fits; a refusal says so."""
    tried = []
    for change in candidates(config, topology):
        say(f"Trying {change.options}")
        try:
            found = compile_step(change.config, topology)
        except ValueError as error:  # what only the machine's devices can refuse, such as memory of the host's
            tried.append({"options": change.options, "fits": False, "used": 0.0, "reason": str(error)})
            continue
        fits = bool(found.memory) and used_bytes(found) <= topology.chip.hbm
        tried.append({"options": change.options, "fits": fits, "used": used_bytes(found)})
        if fits:
            break
    return tried


def candidates(config: Config, topology: Topology) -> Iterator[Change]:
    """One option changed at a time: what costs least time first. Those that are not valid are left out."""
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
    """What stands between a layer's products is cut along the sequence where its heads are cut over tensor."""
    if factor(config.parallel, topology.devices)[-1] > 1 and not cuts_sequence(config.parallel):
        yield f"--parallel.rules.residual_seq {' '.join(SEQUENCE_CUT)}", cut_sequence(config)


def _schedule(config: Config, topology: Topology):
    """A pipeline's backward passes as soon as they can be."""
    if factor(config.parallel, topology.devices)[0] > 1 and config.parallel.pipeline_schedule != "1f1b":
        parallel = dataclasses.replace(config.parallel, pipeline_schedule="1f1b")
        yield "--parallel.pipeline_schedule 1f1b", dataclasses.replace(config, parallel=parallel)


def _remat(config: Config):
    """Everything recomputed; then what the layers start from in the host's memory, too."""
    now = compute.remat(config.model)
    for remat in ("full", "offload_input") if now else ():
        if remat != now and not (remat == "full" and now.startswith("offload")):
            model = compute.changed(config.model, remat=remat)
            yield f"--model.compute.remat {remat}", dataclasses.replace(config, model=model)


def _microbatches(config: Config, topology: Topology):
    """Twice as many pieces, four times, then all that the rows allow."""
    sizes = dict(zip(AXES, factor(config.parallel, topology.devices), strict=True))
    most = config.train.batch_size // math.prod(sizes[axis] for axis in axis_names(config.parallel.rules.batch))
    now = config.train.microbatches
    for n in dict.fromkeys((2 * now, 4 * now, most)):
        if now < n <= most:
            train = dataclasses.replace(config.train, microbatches=n)
            yield f"--train.microbatches {n}", dataclasses.replace(config, train=train)


def cut_sequence(config: Config, axes: tuple[str, ...] = SEQUENCE_CUT) -> Config:
    rules = dataclasses.replace(config.parallel.rules, residual_seq=axes)
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, rules=rules))


def _offload(config: Config):
    if not config.parallel.offload_optimizer:
        parallel = dataclasses.replace(config.parallel, offload_optimizer=True)
        yield "--parallel.offload_optimizer True", dataclasses.replace(config, parallel=parallel)


def _mesh(config: Config, topology: Topology):
    """Replicas become shards; then more tensor parallelism, at the cost of fsdp."""
    _, data, fsdp, _, _, tensor = factor(config.parallel, topology.devices)
    if data > 1:
        yield _with_mesh(config, data=1, fsdp=data * fsdp)
    for more in (2, 4, 8):
        if fsdp % more == 0:
            yield _with_mesh(config, data=data, fsdp=fsdp // more, tensor=tensor * more)


def _with_mesh(config: Config, **sizes: int):
    options = " ".join(f"--parallel.{axis} {size}" for axis, size in sizes.items())
    return options, dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **sizes))
