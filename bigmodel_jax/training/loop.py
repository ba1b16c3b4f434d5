"""The training loop: steps, records, evaluations and saves of a run whose state exists."""

import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from bigmodel_jax import config_file, eval_sets
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config
from bigmodel_jax.core import mirror, params, processes, pulse, sharding
from bigmodel_jax.data.corpus import kept_cards
from bigmodel_jax.data.experience import Experience, phase_of
from bigmodel_jax.data.loader import EvalBatches
from bigmodel_jax.profiling.recorder import Recorder
from bigmodel_jax.report import declared
from bigmodel_jax.report.compilations import Recompilations
from bigmodel_jax.report.environment import write_environment
from bigmodel_jax.report.progress import Progress, group_table, part_epochs, start_rows, start_table
from bigmodel_jax.report.run_clock import RunClock
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.report.step_trace import StepTrace
from bigmodel_jax.report.throughput import Throughput, peak_flops, step_flops, step_size
from bigmodel_jax.report.writers import open_writers
from bigmodel_jax.training import beginning, ending, holder, run_folder, set_evaluations, watch
from bigmodel_jax.training.baselines import Baselines
from bigmodel_jax.training.compiled import Programs
from bigmodel_jax.training.diverged import Diverged, diverged
from bigmodel_jax.training.early_stopping import Judge, Patience
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.rollback import Spikes
from bigmodel_jax.training.set_evaluations import OpenSet, due
from bigmodel_jax.training.shared_programs import OwnPrograms
from bigmodel_jax.training.signals import Interrupted, Stop
from bigmodel_jax.training.state import TrainState, weights

log = logging.getLogger("bigmodel_jax")

DIGEST = "batch_digest"  # the metric of a step that records the digest of its batch


@dataclasses.dataclass
class Run:
    """The objects that all phases of one training run share."""

    config: Config
    run_dir: Path
    mesh: Any
    stages: Stages
    hold: holder.Holder
    saves: store.Store
    batches: Experience
    validation: EvalBatches
    sets: list[OpenSet]
    patience: Patience
    wall: RunClock
    start: int
    constants: params.Tree
    maker: OwnPrograms
    judge: Judge
    page: bool
    profile_alone: bool
    skipped: int = 0
    in_a_row: int = 0  # skipped steps in a row, up to the last recorded one

    def go(self, state: TrainState) -> dict[str, float]:
        """Trains from `state` to the end of the run. Returns the scalars of the last evaluation."""
        config, began = self.config, time.perf_counter()
        log.info("state made")
        if processes.first():
            config.data.save_artifacts(self.run_dir)
            kept_cards.keep(self.run_dir, config.data)
            beginning.keep_sheet(config, self.run_dir, self.batches.rows)
        # The peak is measured while nothing else runs on the devices.
        self.peak, self.peak_source = peak_flops(list(self.mesh.devices.flat), config.precision.compute)
        num_params = params.count(config.make_model().spec, trainable=True)
        write_environment(self.run_dir, parameters=num_params, peak_source=self.peak_source)
        # Baselines compress text for seconds, in a thread beside the compiler, which uses one core.
        self.baselines = Baselines(config.data.baselines if processes.first() and config.eval.baselines else dict)

        # --- compile, and print a summary of the run
        with self.wall.phase(phase_of(self.batches)):
            position = self.batches.position()
            batch = self.batches.next(state)
            self.batches.seek(self.start, position)  # the loop takes this batch again
        self.eval_step = self.maker.eval_step(config, self.mesh)
        self.stages.begin("Compiling the step")
        with self.wall.phase("compile"):
            tree = weights(state, self.constants)
            try:
                set_evaluations.check_all(config, self.eval_step, tree, self.validation, self.sets)
                programs = self.maker.programs(config, self.mesh, state, batch, self.constants)
            except ValueError:
                run_folder.release(self.run_dir)
                raise
            log.info("step compiled")
            processes.meet("compiled")  # no process may run a step while another compiles
        self.tokens_per_step, self.unit = step_size(config.data, batch)
        self.throughput = Throughput(step_flops(config, tree, batch), self.peak * self.mesh.size)
        left = config.train.steps - self.start
        rows = start_rows(config, self.mesh, left, self.tokens_per_step, self.unit, programs.memory)
        rows += [("MFU is of", self.peak_source), ("run folder", mirror.address(self.run_dir))]
        self.known = declared.of(config.objective, config.data, config.eval.metrics, eval_sets.declared(config))
        # The bar shows a metric beside the loss: a loss on centred advantages says little.
        self.headline = [m.name for m in config.objective.metrics if m.headline and m.name != "loss"][:1]
        if processes.first():
            declared.write(self.run_dir, self.known, self.unit, declared.compared(config.data))
        self.stages.end()
        self.stages.console.print(start_table(rows, title=self.run_dir.name))
        if config.optim.groups:
            self.stages.console.print(group_table(config))

        # --- the loop
        self.open_writers(self.start)
        self.trace, self.recompilations = StepTrace(self.run_dir, self.start), Recompilations()
        self.profile = Recorder(config, self.run_dir, programs, alone=self.profile_alone, say=self.stages.say)
        self.spikes = Spikes.of(config, self.run_dir, self.saves, self.batches, self.start)
        of_run = config.train.steps, self.start, self.stages.console, processes.first(), self.unit
        with Stop() as stop, Progress(*of_run) as self.progress, contextlib.ExitStack() as ends:
            for one in (self.profile, self.trace, self.recompilations):
                ends.callback(one.close)
            try:
                with self.wall.phase("steps"):
                    state, scalars = self.loop(state, programs, stop)
            except Diverged:
                self.writers.close()
                ending.report(self.run_dir, self.saves)
                raise
        with self.wall.phase("save"):
            store.wait(self.saves)
        if stop.signal is not None:
            self.writers.close()
            raise Interrupted(stop.signal, int(state.step))

        # --- the end
        ending.finish(config, self.run_dir, state, self.constants, self.saves, self.stages, page=self.page)
        self.writers.close()
        done = int(state.step)
        self.stages.say(f"{done - self.start:,} steps in {time.perf_counter() - began:.0f} s.")
        early = f"Stopped early: {self.judged or self.patience.why()}." if done < config.train.steps else ""
        for text in filter(None, (self.wall.text(), early)):
            self.stages.say(text)
        return scalars

    def loop(self, state: TrainState, programs: Programs, stop: Stop) -> tuple[TrainState, dict[str, float]]:
        """Takes steps up to the last one, a signal or an early stop. Returns state and scalars."""
        config, scalars, pending, step, self.judged = self.config, {}, None, self.start, ""
        self.clock = time.perf_counter()
        while step < config.train.steps:
            self.profile.begin(step, state)
            pulse.at(pulse.DATA, step + 1)
            wait = time.perf_counter()
            batch = self.next_batch(state, pending)
            wait = time.perf_counter() - wait if phase_of(self.batches) == "data" else 0.0
            pulse.at(pulse.DEVICES)
            train_step = programs.watched if due(step + 1, config.report.watch) else programs.step
            state, sums = train_step(state, batch, self.constants)  # donates the old state, and returns at once
            sums = sums | self.batches.measured() | {DIGEST: programs.digest(batch)}
            self.spikes.given(step + 1)
            self.batches.prefetch()  # the host makes the next batch while the devices work
            # The devices already work on step n + 1 when the host reads the metrics of step n.
            if pending is not None:
                self.record(*pending)
                self.check_finite(state)
                if self.spikes.found:
                    (state, step), pending = self.go_back(state), None
                    continue
            step += 1
            self.clock += self.profile.end(step, state, wait)
            pending, done = (step, sums, wait), step
            last = done == config.train.steps
            evaluate_now = last or due(done, config.eval.every)
            sets = [one for one in self.sets if last or one.due(done, evaluate_now)]
            save_now = stop.after(done) or last or due(done, config.checkpoint.every)
            save_locally = due(done, config.checkpoint.local_every)
            if not (evaluate_now or sets or save_now or save_locally):
                continue
            self.record(*pending)
            self.check_finite(state)
            pending = None
            if self.spikes.found:
                state, step = self.go_back(state)
                continue
            ranked = set_evaluations.judged(self.patience.metric, self.sets, sets, evaluate_now)
            if evaluate_now or sets:
                scalars = scalars | self.evaluate(done, state, evaluate_now, sets)
            save_now |= ranked and self.patience.see(done, scalars)
            if evaluate_now and self.judge:
                self.judged = self.judge(done, scalars, last)
            # The flag is read again, because a signal may have come during the evaluation.
            stopping = stop.signal is not None or self.patience.is_over or bool(self.judged)
            if save_locally:
                self.save(done, state, {}, locally=True)
            if save_now or stopping:
                # A save without a new evaluation gets no scalars: old ones could make it the best.
                self.save(done, state, scalars if ranked or not self.patience.limit else {})
            if stopping:
                break
            self.clock = time.perf_counter()
        return state, scalars

    def next_batch(self, state: TrainState, pending: tuple | None) -> dict:
        """The next batch. If it fails, the steps so far are recorded and saved before the error."""
        try:
            return self.wall.next(self.batches, state, pending and pending[1])
        except (OSError, ValueError):
            if pending is not None:
                self.record(*pending)
            done = int(state.step)
            if done > self.start and done not in store.steps(self.saves):
                self.save(done, state, {})
            raise

    def record(self, step: int, sums: dict, wait: float) -> None:
        """Waits for the metrics of a step, and logs them."""
        pulse.at(pulse.DEVICES)
        self.recorded = step
        logged = due(step, self.config.train.log_every) or step == self.config.train.steps
        read = {name: sums[name] for name in ("loss", "skipped_steps", DIGEST, *self.spikes.reads)}
        read |= {name: value for name, value in sums.items() if name.startswith(watch.PREFIX)}
        sums, on_device = sharding.to_host(sums if logged else read), sums
        pulse.at(pulse.RECORD)
        now = time.perf_counter()
        if step == self.start + 1:
            log.info("first step done")
        self.wall.step(step, write=logged)
        self.throughput.record(now - self.clock, wait)
        self.clock = now
        loss = float(sums["loss"].compute())
        self.trace.write(sums.pop(DIGEST), loss)
        rates = self.throughput.rates(self.tokens_per_step)
        shown = {name: float(sums[name].compute()) for name in self.headline if name in sums}
        shown |= part_epochs(sums) if logged else {}
        self.progress.update(step, loss=loss, tokens_per_second=rates["tokens_per_second"], mfu=rates["mfu"], **shown)
        skipped = int(sums["skipped_steps"].total)
        self.skipped, self.in_a_row = self.skipped + skipped, (self.in_a_row + 1) * skipped
        if skipped:
            log.warning("step %d: loss or gradient not finite; the update was skipped", step)
        self.spikes.see(step, sums, on_device)
        if logged:
            values = {n: float(mean.compute()) for n, mean in sums.items() if not n.startswith(watch.PREFIX)}
            values |= {"skipped_steps": self.skipped, "recompilations": self.recompilations.count()}  # of this process
            values |= dict.fromkeys(self.spikes.reads, self.spikes.count)
            self.writers.write(step, values | rates)
        if seen := watch.values(sums):
            self.writers.write(step, seen)

    def check_finite(self, state: TrainState) -> None:
        """Saves and raises Diverged if `train.max_skipped` steps in a row, or all, were skipped."""
        if self.in_a_row < min(self.config.train.max_skipped, self.config.train.steps - self.start):
            return
        pulse.at("looking for what is not finite")
        done = int(state.step)
        if done not in store.steps(self.saves):
            self.save(done, state, {})
        first = self.recorded - self.in_a_row + 1
        raise diverged(self.config, self.mesh, state, self.batches, first, self.in_a_row, self.constants)

    def go_back(self, state: TrainState) -> tuple[TrainState, int]:
        """State and step of the last save. The run goes on with the batches after the spike."""
        with self.wall.phase("restore"):
            restored = self.spikes.go_back(state)
        self.patience.set_state(restored.data_state)
        self.writers.close()
        self.open_writers(restored.step)
        self.trace.go_back(restored.step)
        self.in_a_row, self.clock = 0, time.perf_counter()
        return restored.state, restored.step

    def open_writers(self, step: int) -> None:
        """Opens the writers of a run that stands at `step`."""
        about = {"config": config_file.to_json(self.config), "known": self.known}
        self.writers = open_writers(self.config.report, self.run_dir, from_step=step, **about)

    def evaluate(self, step: int, state: TrainState, whole: bool, sets: list[OpenSet]) -> dict[str, float]:
        """Evaluates the given sets, and the validation split if `whole` is set."""
        pulse.at("evaluating")
        try:
            with self.wall.phase("eval"):
                tree = weights(state, self.constants)
                scalars = evaluate(self.config, self.eval_step, tree, self.validation) if whole else {}
                scalars |= set_evaluations.evaluate_all(sets, self.eval_step, tree, self.run_dir, step)
        except (OSError, ValueError):
            self.save(step, state, {})  # a full disk or a bad record must not lose the steps so far
            raise
        scalars |= {f"eval/{k}": v for k, v in self.baselines.so_far().items()} if whole else {}
        self.writers.write(step, scalars)
        shown = {k.removeprefix("eval/"): v for k, v in scalars.items() if isinstance(v, float)}
        self.progress.message(f"evaluation at step {step:,}  " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))
        return scalars

    def save(self, step: int, state: TrainState, scalars: dict[str, float], *, locally: bool = False) -> None:
        pulse.at("saving")
        self.hold.check()
        numbers = {k: v for k, v in scalars.items() if isinstance(v, float)}
        with self.wall.phase("save"):
            position, config = self.batches.position() | self.patience.get_state(), config_file.to_json(self.config)
            if locally:
                return store.save_local(self.saves, step, state, position, config)
            if processes.first():
                mirror.push(self.run_dir)  # a step's records must be in the bucket before its save
            store.save(self.saves, step, state, position, config, metrics=numbers)
        log.info("step %d saved", step)
