"""Who hangs and who is slow, judged from what processes say: no process is started."""

import pytest

from bigmodel_jax.cluster import hung
from bigmodel_jax.core.pulse import DATA, DEVICES, RECORD, Beat


def member(i, phase=DEVICES, seconds=10.0, *, step=41, silence=0.0, limit=8.0, own=0.01, whole=1.0, num=20):
    return hung.Member(
        f"process {i} (pid {100 + i} on n{i})", Beat(step, phase, seconds, limit, whole, own, num), silence
    )


LIMIT = "; the limit of a step is 8 s (train.max_step_seconds)"
HUNG = {
    "one that reads": (
        [member(0), member(1, DATA, 12), member(2)],
        "process 1 (pid 101 on n1) has been reading the data in step 41 for 12 s; processes 0, 2 wait for it" + LIMIT,
    ),
    "process 0 that writes": (
        [member(0, RECORD), member(1)],
        "process 0 (pid 100 on n0) has been writing the metrics in step 41 for 10 s; process 1 waits for it" + LIMIT,
    ),
    "one that is a step behind": (
        [member(0), member(1, step=40), member(2)],
        "process 1 (pid 101 on n1) has been waiting for the devices in step 40 for 10 s; processes 0, 2 wait for it"
        + LIMIT,
    ),
    "one that says nothing": (
        [member(0), member(1, seconds=1, silence=9), member(2)],
        "process 1 (pid 101 on n1) has not answered for 9 s (it was waiting for the devices, step 41); "
        "processes 0, 2 wait for it" + LIMIT,
    ),
    "all in one collective": (
        [member(0), member(1, seconds=11)],
        "step 41 was not done after 10 s: all processes wait for the devices, none is behind" + LIMIT,
    ),
    "one that says nothing while the others save": (
        [member(0, "saving", 1), member(1, "saving", 1, silence=91)],
        "process 1 (pid 101 on n1) has not answered for 91 s; process 0 waits for it",
    ),
    "two that say nothing and never have": (
        [member(0, "starting"), *(hung.Member(f"process {i} (pid 1 on n)", None, 95) for i in (1, 2))],
        "; ".join(f"process {i} (pid 1 on n) has not answered for 95 s" for i in (1, 2)) + "; process 0 waits for them",
    ),
}


@pytest.mark.parametrize("case", HUNG)
def test_who_hangs_is_named_with_those_that_wait(case):
    members, says = HUNG[case]
    verdict = hung.judge(members, interval=1.0)
    assert verdict.text == says
    assert [m.number for m in verdict.silent] == [m.number for m in members if m.silence]


WELL = {
    "a step that is not overdue": [member(0, seconds=7), member(1)],
    "one evaluates while the others wait": [member(0, "evaluating", 500), member(1), member(2)],
    "one saves while the others wait": [member(0), member(1, "saving", 500)],
    "one compiles": [member(0, "starting", 500), member(1, "starting", 500)],
    "no limit": [member(0, limit=0.0, seconds=1e6), member(1, limit=0.0, seconds=1e6)],
    "a late word": [member(0, "saving"), member(1, silence=60)],
    "no word yet": [member(0), hung.Member("process 1 (pid 1 on n)", None, 2.0)],
}


@pytest.mark.parametrize("case", WELL)
def test_what_only_takes_long_is_no_hang(case):
    assert hung.judge(WELL[case], interval=1.0) is None


def test_a_process_is_slow_by_its_own_part_of_a_step():
    others = [member(i, own=0.02) for i in range(3)]
    assert [m.number for m in hung.slow([*others, member(3, own=0.4)])] == ["3"]
    assert hung.slow([*others, member(3, own=0.1)]) == []  # below a tenth of the step
    assert hung.slow([*others, member(3, own=0.4, num=3)]) == []
    assert hung.slow([member(i, own=0.9) for i in range(3)]) == []  # all wait for the same file server
    assert hung.slow([member(0, own=0.9)]) == []
    assert [m.number for m in hung.slow([member(0, own=0.01), member(1, own=0.5)])] == ["1"]
