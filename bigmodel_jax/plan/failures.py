"""The cost of host failures, and how often a run on many hosts should save: Daly's model.

Hosts fail independently, at exponentially distributed times. The failure of any host ends the whole
job, which then restarts from its newest checkpoint. A save has two costs. First, the steps wait
while the arrays are copied to host memory. Second, the file is written while the steps go on, and
counts only once it is on disk. A failure before that falls back to the previous save.
"""

import dataclasses
import math

from bigmodel_jax.core.ranges import NonNegative, Positive
from bigmodel_jax.plan.sampling import of_step
from bigmodel_jax.plan.sums import HOST_LINK
from bigmodel_jax.plan.topology import Topology

PREPARE_SECONDS = 1.0  # seconds before a save copies anything: digests, folders, hosts that wait for one another
LEAST = 0.001  # the smallest goodput; a run below it makes no progress
# The parts of a plan's memory that a restart reads from the checkpoint or the base weights.
RESIDENT = ("base", "adapters", "parameters", "constants", "optimizer", "average")


@dataclasses.dataclass(frozen=True)
class Failures:
    """Options of `launch.py plan` about failures and saves.

    mtbf: mean hours between two failures of ONE host; None: no forecast.
    storage: GB/s at which one host writes checkpoints, and reads them.
    save_seconds: seconds that the steps wait for a save. None: PREPARE_SECONDS plus the time to
    copy one chip's share to its host.
    restart_minutes: minutes from a failure until the next process restores: scheduling, imports and
    compilation.
    """

    mtbf: Positive | None = None
    storage: Positive = 1.0
    save_seconds: Positive | None = None
    restart_minutes: NonNegative = 10.0


def check(given: Failures) -> None:
    """Raise ValueError if an option is given that needs --mtbf, and --mtbf is missing."""
    if given.mtbf is None and given != Failures():
        raise ValueError("--storage, --save_seconds and --restart_minutes need --mtbf HOURS, which is missing")


def young(save: float, mtbf: float) -> float:
    """Young's save interval in seconds of steps: sqrt(2 save mtbf).

    J. W. Young (1974). It is the first-order approximation of `daly`.
    """
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """Daly's optimal save interval in seconds of steps; a higher order than Young's.

    save: seconds that the steps wait for a save. mtbf: mean seconds between failures of the job.

    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
    Generation Computer Systems 22 (2006).
    """
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return young(save, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def goodput(interval: float, save: float, restart: float, mtbf: float) -> float:
    """The share of wall time spent in steps that are not lost, by Daly's complete model.

    The model allows for failures during a restart. All arguments are in seconds. interval: steps
    between two saves. save: the wait for one save. restart: from a failure until the job is back at
    its newest checkpoint on disk. mtbf: mean time between failures of the job.
    """
    cycle = interval + save
    return interval / mtbf * math.exp(-(restart + cycle) / mtbf) / -math.expm1(-cycle / mtbf)


def forecast(plan: dict, topology: Topology, given: Failures) -> dict:
    """{"goodput": ...} for a plan that has a step time and a run. It is empty without --mtbf.

    Raises ValueError with a one-line message where the run would make no progress.
    """
    if given.mtbf is None or "run" not in plan:
        return {}
    state_bytes = plan["checkpoint_bytes"]
    # The failure of any host ends the job, so more hosts mean a shorter mean time.
    hosts, mtbf, rate = topology.hosts, 3600 * given.mtbf / topology.hosts, 1e9 * given.storage
    parts = plan["memory"]["parts"]
    resident = sum(parts.get(name, 0.0) for name in RESIDENT) + plan["memory"]["host"]
    save = given.save_seconds or PREPARE_SECONDS + state_bytes / topology.chips / HOST_LINK
    # A host writes its share of the state once, but reads a copy for each of its devices.
    write, read = state_bytes / hosts / rate, resident * topology.devices / hosts / rate
    restart = 60 * given.restart_minutes + read
    step = plan["step_seconds"] + of_step(plan)
    # A save cannot start before the previous one is on disk.
    steps = max(1, round(daly(save, mtbf) / step), math.ceil((write - save) / step))
    # The steps computed while a save was written are lost too, so a restart costs them again.
    share = goodput(steps * step, save, restart + write, mtbf)
    if share < LEAST:
        raise ValueError(
            f"--mtbf {given.mtbf:g}: a failure every {mtbf:.3g} s on {hosts:,} hosts, and {restart + write:.3g} s until "
            "the run goes on, so it would make no progress; give fewer hosts, a shorter --restart_minutes or a faster --storage"
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
