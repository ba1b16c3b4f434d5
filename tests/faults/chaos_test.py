"""Chaos on a small scale, and what it makes of runs that went wrong."""

import json
import random

import pytest
from grids import few

import chaos_events
import chaos_kinds
import chaos_runs
from chaos_result import Result, finish
from chaos_runs import Ended, Whole

LINE = "interrupted by SIGINT; the same command starts or resumes it\n"


@pytest.mark.parametrize(
    ("done", "codes", "column"),
    [
        (Ended(0, "", ""), (0,), None),
        (Ended(2, "", "error: no\n"), (0, 2), None),
        (Ended(2, "", "checkpoint: damaged in x\nerror: no\n"), (2,), None),
        (Ended(130, "", LINE), (130,), None),
        (Ended(None, "", ""), (0,), "hung"),
        (Ended(1, "", "Traceback (most recent call last):\n"), (0, 1), "tracebacks"),
        (Ended(-6, "", "Fatal Python error: Aborted\n"), (0,), "tracebacks"),
        (Ended(0, "", ""), (130,), "wrong end"),
        (Ended(-11, "", ""), (0, 2), "wrong end"),
        (Ended(2, "", "no\n"), (2,), "wrong end"),
        (Ended(2, "", "error: no\nand more\n"), (2,), "wrong end"),
        (Ended(130, "", LINE * 2), (130,), "wrong end"),
    ],
)
def test_how_a_command_ended_is_judged(done, codes, column):
    result = Result()
    assert result.ended(done, codes, "x") == (column is None)
    assert [name for name, _ in result.faults] == ([column] if column else [])


class Again:
    """Commands whose every run ends like this."""

    def __init__(self, done):
        self.run = lambda *args: done


@pytest.mark.parametrize(
    ("steps", "parameters", "err", "columns"),
    [
        ((1, 2, 3), "a", "", []),
        ((1, 3), "a", "", ["rows lost"]),
        ((1, 2, 2, 3), "a", "", ["rows lost"]),
        ((3,), "a", "metrics.jsonl: no records of steps 1 to 2\n", []),
        ((1, 2, 3), "b", "", ["silent"]),
    ],
)
def test_a_resumed_run_is_compared(tmp_path, monkeypatch, steps, parameters, err, columns):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in steps))
    monkeypatch.setattr(chaos_runs, "parameters", lambda config, run_dir: parameters)
    rows = [(("step", n), ("loss", 1 / n)) for n in (1, 2, 3)]
    whole, result = Whole(tmp_path / "x.py", rows, "a", tmp_path, 0.0, 0.0), Result()
    finish(whole, Again(Ended(0, "", err)), tmp_path, result, "x")
    assert [name for name, _ in result.faults] == columns
    assert (result.compared, result.identical) == (1, parameters == "a")


def test_every_damage_changes_the_file(tmp_path):
    path, seen = tmp_path / "x", set()
    for seed in range(60):
        path.write_bytes(bytes(range(1, 200)))
        seen.add(chaos_events.spoil(path, random.Random(seed)).split()[0])
        assert not path.exists() or path.read_bytes() != bytes(range(1, 200))
    assert seen == {"flip", "zeros", "cut", "empty", "remove", "append"}


def test_a_table_has_a_row_for_each_kind():
    result = Result(count=3, faults=[("hung", "x")], refused=["y"], compared=2, identical=1)
    row = chaos_kinds.table({"damages": result}).splitlines()[-1]
    assert row.endswith("| 3 | 0 | 1 | 0 | 0 | 0 | 1 | 1 of 2 |")


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    with chaos_kinds.prepared(40, tmp_path_factory.mktemp("chaos"), chaos_kinds.RUNS) as chaos:
        yield chaos


# bad_input_test.py has a full disk, and two_starters_test.py a second start.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    few([("signals", 3), ("damages", 1), ("full_disks", 1), ("starters", 1)], ("signals", 3), ("damages", 1)),
)
def test_nothing_is_lost(chaos, kind, count):
    result = chaos.all(kind, count, 2, lambda _: None)
    assert result.faults == []
    assert result.count == count
    assert result.identical == result.compared > count / 8
