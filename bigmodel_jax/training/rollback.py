"""Reacts to the spikes that steps have found (spikes.py): logs them, and may roll back to
a save.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.checkpoint import local, store
from bigmodel_jax.checkpoint.store import Restored
from bigmodel_jax.config import Config, SpikeConfig
from bigmodel_jax.core import processes, sharding
from bigmodel_jax.data.experience import Experience
from bigmodel_jax.report import spike_records
from bigmodel_jax.training.state import TrainState

log = logging.getLogger("bigmodel_jax")


@dataclasses.dataclass
class Spikes:
    """The spikes of a run. All processes see the same ones and roll back together.

    count: spikes since the process started.
    found: the spike to roll back for.
    after: the data position after the batches of the last two steps, by step.
    """

    config: SpikeConfig
    run_dir: Path
    saves: store.Store
    batches: Experience
    count: int = 0
    found: dict | None = None
    after: dict[int, dict] = dataclasses.field(default_factory=dict)
    back_to: int = -1
    times: int = 0  # rollbacks to the save of step `back_to`

    @classmethod
    def of(cls, config: Config, run_dir: Path, saves: store.Store, batches: Experience, start: int) -> "Spikes":
        """The spikes of a run that stands at step `start`."""
        spike_records.drop_after(run_dir, batches.position().get("next_batch", start))
        return cls(config.train.spikes, run_dir, saves, batches)

    @property
    def reads(self) -> tuple[str, ...]:
        """The metrics of every step that the host must read."""
        return () if self.config.action == "off" else ("spikes",)

    def given(self, step: int) -> None:
        """Notes the data position after the batch of `step`."""
        if self.config.action == "rollback":
            # Two positions are kept, because the host reads the metrics of step n after step n + 1
            # has begun.
            before = {step - 1: self.after[step - 1]} if step - 1 in self.after else {}
            self.after = before | {step: self.batches.position()}

    def see(self, step: int, on_host: dict, sums: dict) -> None:
        """Reads the metrics of a step. `on_host` has those that are already on the host."""
        if not self.reads or not int(on_host["spikes"].total):
            return
        self.count += 1
        names = ("loss", "grad_norm", "deviations")
        spike = {name: float(mean.compute()) for name, mean in sharding.to_host({n: sums[n] for n in names}).items()}
        batches = self.after.get(step, {}).get("next_batch", step)
        spike = {"step": step} | spike | {"action": self.config.action, "back_to": None, "batches": batches}
        if self.config.action == "rollback" and self._may_go_back():
            self.found = spike
        else:
            self._say(spike)

    def _may_go_back(self) -> bool:
        steps = [*store.steps(self.saves), *(local.steps(self.saves.local) if self.saves.local else [])]
        # A local save may exist on one host alone, so one process decides for all.
        newest = processes.from_first(max(steps, default=-1))
        return newest >= 0 and not (newest == self.back_to and self.times >= self.config.max_rollbacks)

    def go_back(self, state: TrainState) -> Restored:
        """Restores the last save, and moves the batches past the spike. `state` is deleted."""
        spike, self.found = self.found, None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        jax.tree.map(lambda x: x.delete(), state)  # two states may not fit in memory
        restored = store.restore(self.saves, abstract)
        if restored is None:
            raise ValueError(
                f"train.spikes: step {spike['step']:,} is a spike, and there is no intact save to go back to"
            )
        self.times = self.times + 1 if restored.step == self.back_to else 1
        self.back_to = restored.step
        self.batches.seek(restored.step, self.after[spike["step"]])
        self._say(spike | {"back_to": restored.step})
        return restored

    def _say(self, spike: dict[str, Any]) -> None:
        far = f"loss {spike['loss']:.4g}, gradient norm {spike['grad_norm']:.4g}, {spike['deviations']:.3g} deviations"
        back = spike["back_to"]
        done = "its update was skipped" if back is None else f"back to step {back:,}, on with the batches after it"
        log.warning("step %d: a spike (%s); %s", spike["step"], far, done)
        spike_records.add(self.run_dir, spike)
