"""What failures cost a run on many hosts, and how often it should save: Daly's model.

Hosts fail independently, after times that are exponentially distributed; the failure of any host ends the whole job,
which starts again from its newest checkpoint. A save of ours has two costs. The steps wait while it copies the arrays to
the host's memory. Then it is written while the steps go on, and is of use once it is on disk: a failure before that falls
back to the save before.
"""

import dataclasses
import math

from bigmodel_jax.core.ranges import NonNegative, Positive
from bigmodel_jax.plan.sums import HOST_LINK
from bigmodel_jax.plan.topology import Topology

PREPARE_SECONDS = 1.0  # of a save before it copies: digests, folders, and hosts that wait for one another
LEAST = 0.001  # of a goodput; below that a run gets nowhere
# What a restart reads again: the parts of a plan's memory that a run starts with.
RESIDENT = ("base", "adapters", "parameters", "constants", "optimizer", "average")


@dataclasses.dataclass(frozen=True)
class Failures:
    """What `launch.py plan` is told of a pod's failures and saves.

    mtbf: hours between two failures of ONE host, on average; None: no forecast. storage: GB/s that one host writes to the
    checkpoints' file system, and reads from it. save_seconds: that the steps wait for a save; None: PREPARE_SECONDS and
    the copy of a chip's part to its host. restart_minutes: from a failure to the next process's restore, which are
    scheduling, imports and compiling.
    """

    mtbf: Positive | None = None
    storage: Positive = 1.0
    save_seconds: Positive | None = None
    restart_minutes: NonNegative = 10.0


def check(given: Failures) -> None:
    """ValueError where an option is given that nothing reads."""
    if given.mtbf is None and given != Failures():
        raise ValueError("--storage, --save_seconds and --restart_minutes need --mtbf HOURS, which is missing")


def young(save: float, mtbf: float) -> float:
    """Seconds of steps between two saves by J. W. Young (1974), the first order of `daly`: sqrt(2 save mtbf)."""
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """Seconds of steps between two saves that cost a run least, to a higher order than Young's.

    save: seconds that the steps wait for a save; mtbf: of the job, in seconds. J. T. Daly, A higher order estimate of the
    optimum checkpoint interval for restart dumps, Future Generation Computer Systems 22 (2006).
    """
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return young(save, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def goodput(interval: float, save: float, restart: float, mtbf: float) -> float:
    """The share of the wall time that is in steps that count, by Daly's complete model, in which restarts may fail, too.

    All in seconds. interval: of steps between two saves; save: that the steps wait for one; restart: from a failure until
    the job stands where its newest checkpoint is known to be on disk; mtbf: of the job.
    """
    cycle = interval + save
    return interval / mtbf * math.exp(-(restart + cycle) / mtbf) / -math.expm1(-cycle / mtbf)


def forecast(plan: dict, topology: Topology, given: Failures) -> dict:
    """{"goodput": ...} of a plan that has a step's seconds and a run; empty without a --mtbf.

    ValueError, one line, where the run would get nowhere.
    """
    if given.mtbf is None or "run" not in plan:
        return {}
    state_bytes = plan["checkpoint_bytes"]
    hosts, mtbf, rate = topology.hosts, 3600 * given.mtbf / topology.hosts, 1e9 * given.storage
    parts = plan["memory"]["parts"]
    resident = sum(parts.get(name, 0.0) for name in RESIDENT) + plan["memory"]["host"]
    save = given.save_seconds or PREPARE_SECONDS + state_bytes / topology.chips / HOST_LINK
    write, read = state_bytes / hosts / rate, resident * topology.devices / hosts / rate
    restart = 60 * given.restart_minutes + read
    step = plan["step_seconds"]
    # A save waits until the one before is on disk.
    steps = max(1, round(daly(save, mtbf) / step), math.ceil((write - save) / step))
    # What was computed while a save was written is done again.
    share = goodput(steps * step, save, restart + write, mtbf)
    if share < LEAST:
        raise ValueError(
            f"--mtbf {given.mtbf:g}: a failure every {mtbf:.3g} s on {hosts:,} hosts, and {restart + write:.3g} s until "
            "the run goes on: it would get nowhere; fewer hosts, a shorter --restart_minutes or a faster --storage"
        )
    run = plan["run"]
    return {
        "goodput": {
            "share": share,
            "hosts": hosts,
            "host_mtbf_hours": given.mtbf,
            "job_mtbf_seconds": mtbf,
            "save_every_steps": steps,
            "save_every_seconds": steps * step,
            "save_seconds": save,
            "write_seconds": write,
            "restart_seconds": restart,
            "storage_bytes_per_second": rate,
            "checkpoint_bytes": state_bytes,
            "failures": run["seconds"] / share / mtbf,
            "seconds": run["seconds"] / share,
            "chip_hours": run["chip_hours"] / share,
            "dollars": run["dollars"] / share,
        }
    }
