"""What an event left behind is judged: how a command ended, and whether the resumed run is the
undisturbed one."""

import dataclasses
from pathlib import Path

import chaos_runs
from chaos_runs import Commands, Ended, Whole

COLUMNS = ("silent", "hung", "tracebacks", "wrong end", "rows lost")


@dataclasses.dataclass
class Result:
    """count: events that took place; faults: (column, what); refused: what could not be resumed,
    and the line that says why; compared: runs that were finished and compared."""

    count: int = 0
    faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    compared: int = 0
    identical: int = 0

    def __add__(self, other: "Result") -> "Result":
        return Result(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    def fault(self, column: str, text: str) -> None:
        assert column in COLUMNS
        self.faults.append((column, text))

    def ended(self, done: Ended, codes: tuple[int, ...], what: str) -> bool:
        """Notes how a command ended; whether it is worth looking at what it left."""
        said = " | ".join(done.lines)[-1500:]
        if done.hung:
            self.fault("hung", f"{what}: {said}")
        elif done.traceback:
            self.fault("tracebacks", f"{what}: exit code {done.code}: {done.err[-3000:]}")
        elif done.code not in codes or not _one_line(done):
            self.fault("wrong end", f"{what}: exit code {done.code}: {said}")
        else:
            return True
        return False


def _one_line(done: Ended) -> bool:
    """Whether the command says once why it ended, after its warnings. A command that succeeds
    prints nothing but warnings."""
    why = [line.startswith(("error: ", "interrupted by ")) for line in done.lines]
    if done.code in (2, 130):
        return sum(why) == 1 and why[-1]
    return sum(why) <= 1


def finish(whole: Whole, commands: Commands, run_dir: Path, result: Result, what: str, *args, may_refuse=False) -> None:
    """The same command once more, undisturbed: it ends the run, which is then the run that nothing
    disturbed.

    may_refuse: what was done to the run may be a reason to refuse it, in one line.
    """
    done = commands.run(*whole.train(run_dir), *args)
    if not result.ended(done, (0, 2) if may_refuse else (0,), f"{what}, then resumed"):
        return
    if done.code == 2:
        result.refused.append(f"{what}: {done.lines[-1]}")
        return
    result.compared += 1
    same = chaos_runs.parameters(whole.path, run_dir) == whole.parameters
    result.identical += same
    if not same:
        result.fault("silent", f"{what}: other parameters, exit code 0: {done.err[-500:]}")
    found = chaos_runs.rows(run_dir)
    if found != whole.rows and "metrics.jsonl" not in done.err:
        steps = [dict(row)["step"] for row in found]
        result.fault("rows lost", f"{what}: {len(found)} rows, not {len(whole.rows)}, of steps {steps}")
