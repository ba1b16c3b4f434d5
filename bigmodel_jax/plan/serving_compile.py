"""Check a server's config, and compile its two programs for absent devices."""

import dataclasses
import time
from collections.abc import Callable

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import AXES, ParallelConfig, factor
from bigmodel_jax.plan.compile import Compiled, ask, read, root, stated_bytes, used_bytes
from bigmodel_jax.plan.serving import Serving, for_options, stored_config
from bigmodel_jax.plan.topology import Topology, divisors

PROGRAMS = ("decode", "prefill")
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Server:
    """A server's programs (decode and prefill), compiled."""

    config: Config
    serving: Serving
    programs: dict[str, Compiled]

    @property
    def refused(self) -> str:
        """The compiler's message where a program does not fit, else empty."""
        return next((one.refused for one in self.programs.values() if one.refused), "")

    @property
    def used(self) -> float:
        """Bytes of one device's memory that the larger program needs.

        For a refused program: what the compiler's message states.
        """
        return max(
            used_bytes(one) if one.memory else stated_bytes(one.refused, one.sizes["weights"] + one.sizes["cache"])
            for one in self.programs.values()
        )

    def fits(self, topology: Topology) -> bool:
        """Whether both programs fit into one device's memory."""
        return not self.refused and self.used <= topology.chip.hbm


def with_layout(config: Config, topology: Topology) -> Config:
    """The config with the server's mesh.

    A mesh given by options stays. Otherwise the weights are sharded over all devices (`tensor`), or
    over as many as the model's sizes allow, and the slots over the rest.
    """
    parallel = config.parallel
    if config != for_options(config):
        return config
    meshes = [
        # The widest `tensor` comes first: each device then reads the fewest weights per token.
        dataclasses.replace(parallel, data=topology.devices // n, tensor=n)
        for n in divisors(topology.devices)[::-1]
    ]
    fitting = (mesh for mesh in meshes if not _wrong(config, mesh))
    return dataclasses.replace(config, parallel=next(fitting, meshes[-1]))


def _wrong(config: Config, parallel: ParallelConfig) -> str:
    try:
        config.model.validate(parallel)
    except ValueError as error:
        return str(error)
    return ""


def check(config: Config, serving: Serving, topology: Topology) -> None:
    """Raise ValueError for whatever can be known to be wrong before compiling."""
    sizes = dict(zip(AXES, factor(config.parallel, topology.devices), strict=True))
    model = config.make_model()
    if model.make_cache is None:
        raise ValueError(f"--serve: {type(config.model).__name__} has no decode cache, so it cannot generate")
    if sizes["stage"] > 1:
        raise ValueError(f"parallel.stage = {sizes['stage']}: texts are generated without a pipeline")
    config.model.validate(dataclasses.replace(config.parallel, **sizes))
    most = getattr(config.model, "max_seq_len", serving.length)
    if serving.length > most:
        raise ValueError(
            f"--length {serving.length}: model.max_seq_len is {most}; --model.max_seq_len {serving.length} plans a longer one"
        )
    if serving.length < 2:
        raise ValueError(f"--length {serving.length}: it must have room for a prompt and an answer, so 2 or more")
    if serving.prompt >= serving.length:
        raise ValueError(f"--prompt {serving.prompt}: it must leave room for an answer in --length {serving.length}")
    rows = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    if serving.slots % rows:
        raise ValueError(
            f"--slots {serving.slots} is not divisible by the {rows} devices over which the slots are sharded"
        )
    stored_config(config, serving).make_model()


def compile_server(config: Config, topology: Topology, serving: Serving, say: Say) -> Server:
    """Compile decode, then prefill. Stop at the first that does not fit."""
    programs = {}
    for name in PROGRAMS:
        say(f"Compiling {name} of {serving.slots} slots")
        programs[name] = compile_program(config, topology, serving, name)
        if programs[name].refused:
            break
    return Server(config, serving, programs)


def compile_program(config: Config, topology: Topology, serving: Serving, program: str) -> Compiled:
    """Compile one of PROGRAMS for `topology`, or read it from the cache.

    Raises ValueError with a one-line message where it cannot be compiled.
    """
    root().mkdir(parents=True, exist_ok=True)
    request = {
        "config": config_file.to_json(config),
        "topology": topology.name,
        "slices": topology.slices,
        "serving": dataclasses.asdict(serving),
        "program": program,
        "cache": str(root()),
    }
    begun = time.perf_counter()
    answer = ask("bigmodel_jax.plan.serving_worker", request, topology.chip.platform)
    if "mistake" in answer:
        raise ValueError(answer["mistake"])
    return read(answer, time.perf_counter() - begun)
