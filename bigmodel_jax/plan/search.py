"""Search the best layout for a model on a given number of chips.

All possible layouts are pruned by formulas (sums.py). The most promising ones are compiled and
ranked.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import files
from bigmodel_jax.core.sharding import AXES, factor
from bigmodel_jax.data.fields import along
from bigmodel_jax.models import compute
from bigmodel_jax.plan.changes import cut_sequence
from bigmodel_jax.plan.compile import Compiled, compile_all
from bigmodel_jax.plan.sums import cuts_sequence, sums
from bigmodel_jax.plan.topology import Topology, divisors

# Values of model.compute.remat that the search tries.
REMATS = ("none", "dots", "save_qkv_attn_mlp", "save_qkv_attn", "full", "offload_qkv_attn", "offload_input")
MOST_TENSOR = 16  # largest tensor axis; beyond it, activations cross the network to save few bytes of weights
FORMAT = '''"""{title}

Written by `launch.py plan --search`.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.config_file import load


def get_config() -> Config:
    base = load({base!r})
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model{model}),
        parallel=dataclasses.replace(
            base.parallel,
            {parallel},
            rules=dataclasses.replace(base.parallel.rules, residual_seq={residual_seq!r}),
        ),
        train=dataclasses.replace(base.train, microbatches={microbatches}),
    )
'''


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One layout, with estimates that need no compiler.

    memory: bytes of one device. seconds: the duration of one step.
    """

    config: Config
    memory: float
    seconds: float

    @property
    def title(self) -> str:
        parallel = self.config.parallel
        mesh = " ".join(f"{axis}={getattr(parallel, axis)}" for axis in AXES if getattr(parallel, axis) > 1)
        remat = compute.remat(self.config.model)
        host = ", optimizer on the host" if parallel.offload_optimizer else ""
        cut = ", sequence cut over tensor" if cuts_sequence(parallel) else ""
        return f"{mesh or 'one device'}, remat {remat}, microbatches {self.config.train.microbatches}{cut}{host}"


def candidates(config: Config, topology: Topology) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """(layouts that may fit, fastest first; (title, reason) of those that cannot)."""
    kept, rejected = [], []
    for changed in layouts(config, topology):
        found = Candidate(changed, *sums(changed, topology))
        if found.memory > topology.chip.hbm:
            need = f"by sums alone {found.memory / 2**30:.1f} GiB of {topology.chip.hbm / 2**30:.2f}"
            rejected.append((found.title, need))
        else:
            kept.append(found)
    return sorted(kept, key=lambda c: (c.seconds, c.memory)), rejected


def layouts(config: Config, topology: Topology) -> Iterator[Config]:
    """All combinations of mesh, remat, microbatches and optimizer offload.

    With tensor parallelism, the residual stream is tried with and without a sharded sequence.
    `stage` and `seq` stay as in the config.

    Slices lie along `data`. If their number does not divide `data`, they lie along `stage` or
    `fsdp`. Any other axis across slices would wait for the slow network.
    """
    stage, seq = max(config.parallel.stage, 1), max(config.parallel.seq, 1)
    experts = divisors(getattr(config.model, "num_experts", 1))
    remats = REMATS if compute.remat(config.model) else ("",)
    # A program for a GPU does not name host memory as a memory kind.
    offloads = (False, True) if topology.chip.platform == "tpu" else (False,)
    per_slice = topology.devices // topology.slices
    for tensor, expert in itertools.product(divisors(math.gcd(per_slice, MOST_TENSOR)), experts):
        if per_slice % (tensor * expert * seq) or topology.devices % (tensor * expert * seq * stage):
            continue
        # The remaining devices are split between data and fsdp.
        shards = topology.devices // (tensor * expert * seq * stage)
        cuts = tensor > 1 and bool(along(config.data.row(), "seq"))
        residuals = (cut_sequence(config, ("seq",)), cut_sequence(config)) if cuts else (config,)
        for fsdp in divisors(shards):
            data = shards // fsdp
            if data % topology.slices and stage % topology.slices and fsdp % topology.slices:
                continue
            rows = config.train.batch_size // (data * fsdp * expert * stage)
            for base, remat, offload in itertools.product(residuals, remats, offloads):
                # Each microbatch needs a row on every shard.
                for microbatches in (n for n in (1, 2, 4, 8) if n <= max(rows, 1)):
                    mesh = {"stage": stage, "data": data, "fsdp": fsdp, "expert": expert, "seq": seq, "tensor": tensor}
                    yield _layout(base, remat, offload, microbatches, **mesh)


def _layout(config: Config, remat: str, offload: bool, microbatches: int, **mesh: int) -> Config:
    parallel = dataclasses.replace(config.parallel, **mesh, offload_optimizer=offload)
    model = compute.changed(config.model, remat=remat) if remat else config.model
    train = dataclasses.replace(config.train, microbatches=microbatches)
    return dataclasses.replace(config, parallel=parallel, model=model, train=train)


# ------------------------------------------------------------ the search


def search(
    config: Config,
    topology: Topology,
    *,
    describe: Callable[[Config, Compiled], dict],
    compiles: int = 8,
    workers: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Compile the most promising layouts and rank them.

    Returns {"ranked": plans that fit, fastest first; "rejected": (title, reason) rows;
    "considered": number of layouts}.

    Layouts are compiled in the order of their estimated time, several at once, until `compiles` of
    them fit. Compiled programs are cached, so a stopped search continues where it was.
    """
    left, rejected = candidates(config, topology)
    # Compile the config's own layout first, so that the answer is never worse than it.
    left.sort(key=lambda candidate: not _same(candidate.config, config, topology.devices))
    considered, ranked = len(left) + len(rejected), []
    workers = workers or os.cpu_count() or 1
    while left and len(ranked) < compiles:
        chosen, left = _next(left, ranked, min(workers, compiles - len(ranked)), topology, rejected)
        say(f"{considered:,} layouts, {len(left):,} left; compiling {'; '.join(c.title for c in chosen)}")
        for candidate, result in compile_all(((c, c.config) for c in chosen), topology, workers):
            if isinstance(result, ValueError):
                rejected.append((candidate.title, str(result)))
                continue
            plan = describe(candidate.config, result) | {"title": candidate.title, "sums": candidate.seconds}
            if plan["fits"]:
                ranked.append(plan)
                continue
            rejected.append((candidate.title, "compiled, it does not fit"))
            # On the same mesh, a layout that needs more memory cannot fit either.
            worse = [c for c in left if _mesh(c) == _mesh(candidate) and c.memory >= candidate.memory]
            rejected += [(c.title, f"needs more than {candidate.title}, which does not fit") for c in worse]
            left = [c for c in left if c not in worse]
    ranked.sort(key=lambda plan: plan["step_seconds"])
    rejected += [(c.title, f"by sums {c.seconds:.3f} s a step: slower than those that were compiled") for c in left]
    return {"ranked": ranked, "rejected": rejected, "considered": considered}


def _same(layout: Config, asked: Config, num_devices: int) -> bool:
    """Whether a layout equals the one in a config; False if the config's mesh is impossible."""
    try:
        sizes = factor(asked.parallel, num_devices)
    except ValueError:
        return False
    fields = [
        (
            compute.remat(c.model),
            c.train.microbatches,
            c.parallel.offload_optimizer,
            cuts_sequence(c.parallel),
        )
        for c in (layout, asked)
    ]
    return layout.parallel.sizes() == sizes and fields[0] == fields[1]


def _mesh(candidate: Candidate) -> tuple[int, ...]:
    return candidate.config.parallel.sizes()


def _next(left, ranked, count: int, topology: Topology, rejected: list) -> tuple[list[Candidate], list[Candidate]]:
    """(the next `count` layouts to compile, the others).

    The fastest valid layouts come next, but at most two of each mesh.
    """
    seen = [tuple(plan["config"]["parallel"][axis] for axis in AXES) for plan in ranked]
    chosen, others = [], []
    for candidate in left:
        taken = seen.count(_mesh(candidate)) + sum(_mesh(c) == _mesh(candidate) for c in chosen)
        if len(chosen) == count or taken >= 2:
            others.append(candidate)
        elif (reason := invalid(candidate.config, topology)) is not None:
            rejected.append((candidate.title, reason))
        else:
            chosen.append(candidate)
    if not chosen:  # two layouts of every remaining mesh are compiled, which is enough
        rejected += [(c.title, "two of its mesh are faster") for c in others]
        return [], []
    return chosen, others


def invalid(config: Config, topology: Topology) -> str | None:
    """Why a config is not valid for the topology; None if it is."""
    try:
        validate(config, topology.devices)
    except ValueError as error:
        return str(error)
    return None


def write_config(path: Path, base: Path, best: dict, title: str) -> None:
    """Write a config file: `base` with the winner's layout."""
    parallel = {axis: best["config"]["parallel"][axis] for axis in AXES}
    parallel["offload_optimizer"] = best["config"]["parallel"]["offload_optimizer"]
    remat = best["config"]["model"].get("compute", {}).get("remat")
    text = FORMAT.format(
        title=title,
        base=str(base),
        model=f", compute=dataclasses.replace(base.model.compute, remat={remat!r})" if remat else "",
        parallel=", ".join(f"{axis}={value!r}" for axis, value in parallel.items()),
        residual_seq=_axes(best["config"]["parallel"]["rules"]["residual_seq"]),
        microbatches=best["config"]["train"]["microbatches"],
    )
    files.replace(path, text)


def _axes(value: str | list | None) -> str | tuple | None:
    return tuple(value) if isinstance(value, list) else value
