"""The split of a run's wall time. Records written by hand have a known split; the clock writes
records of its own."""

import json
import threading
import time
from pathlib import Path

import pytest

import run_folders as folders
from bigmodel_jax.report import goodput, run_clock
from bigmodel_jax.report.history import headline, load_run
from bigmodel_jax.report.page import build_report
from bigmodel_jax.report.run_clock import RunClock


def record(folder: Path, *lines: tuple, tail: str = "") -> Path:
    """Writes lines (time, phase, step), with data and rollout or without, and then `tail`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("time", "phase", "step", "data", "rollout")
    text = "".join(json.dumps(dict(zip(names, line, strict=False))) + "\n" for line in lines)
    (folder / goodput.FILE).write_text(text + tail)
    return folder


FIRST = (
    *((1000, "start", 0), (1400, "other", 0), (2400, "compile", 0), (3400, "steps", 4, 100), (3650, "save", 4)),
    *((4650, "steps", 8), (4900, "eval", 8), (5200, "save", 8), (5700, "steps", 10)),
)
KILLED = (*FIRST, (5800, "steps", 10))  # 600 ms since the save, 10 steps and a part of the 11th
RESUMED = ((9000, "start", 8), (9300, "other", 8), (9400, "restore", 8), (9900, "compile", 8), (11_000, "steps", 12))
SECOND = (*RESUMED, (11_010, "save", 12), (11_020, "other", 12))


def parts_of(folder: Path) -> dict[str, int]:
    """The parts that are not 0."""
    found = goodput.read(folder)
    assert sum(found.parts.values()) == found.wall
    return {name: ms for name, ms in found.parts.items() if ms}


def test_a_run_that_nothing_interrupts_has_no_lost_work(tmp_path):
    expected = {"steps": 2500, "compile": 1000, "save": 550, "eval": 250, "data": 100, "other": 400}
    assert parts_of(record(tmp_path, *KILLED)) == expected


def test_a_killed_run_has_lost_what_a_restart_did_again_and_was_down_in_between(tmp_path):
    record(tmp_path, *KILLED, *SECOND)
    expected = {"steps": 1900 + 1100, "compile": 1500, "save": 560, "eval": 250, "data": 100, "other": 400 + 310}
    assert parts_of(tmp_path) == expected | {"restore": 100, "lost": 600, "down": 3200}
    found = goodput.read(tmp_path)
    assert (found.wall, found.starts, found.since) == (10_020, 2, 0)
    assert found.goodput == 3000 / 10_020


def test_a_restart_from_an_older_save_loses_steps_of_several_processes(tmp_path):
    """The second process ended at step 12. Its saves were damaged, so the third began at step 6."""
    third = ((12_020, "start", 6), (14_020, "steps", 12))
    record(tmp_path, *KILLED, *SECOND, *third)
    found = parts_of(tmp_path)
    # The first process keeps steps 1 to 4 and half of 5 to 8. The second keeps none.
    assert found["steps"] == 900 + 500 + 2000
    assert found["lost"] == 500 + 600 + 1100
    assert found["down"] == 3200 + 1000


def test_rollouts_are_a_part_of_their_own_and_so_is_the_one_before_the_compilation(tmp_path):
    lines = ((1000, "start", 0), (2000, "rollout", 0), (2500, "compile", 0), (4500, "steps", 4, 100, 1500))
    record(tmp_path, *lines, (5000, "steps", 6, 0, 900), (9000, "start", 4), (9400, "steps", 6, 0, 100))
    expected = {"steps": 400 + 300, "compile": 500, "data": 100, "rollout": 1000 + 1500 + 500 + 100, "down": 4000}
    assert parts_of(tmp_path) == expected
    assert "rollouts 3.1 s" in goodput.read(tmp_path).text()


def test_steps_after_the_last_save_count_until_a_restart_does_them_again(tmp_path):
    assert "lost" not in parts_of(record(tmp_path, *KILLED))


TIMES = ("5.9e3", "1e999", "9" * 5000, str(2**60), "-1", "true", "null", '"5900"')
TAILS = (
    *('{"time": 5900, "phase": "st', "\n", "null", "[]", '{"time": 5900}', "[" * 100_000, "\x00\xff"),
    *(f'{{"time": {time}, "phase": "eval", "step": 1}}' for time in TIMES),
    *(f'{{"time": 5900, "phase": {phase}, "step": 1}}' for phase in ('["eval"]', '"down"', "null")),
)


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
def test_a_line_that_is_none_is_left_out(tmp_path, tail):
    whole, cut = record(tmp_path / "whole", *KILLED), record(tmp_path / "cut", *KILLED, tail=tail)
    assert goodput.read(cut) == goodput.read(whole)


def test_a_clock_that_goes_back_leaves_no_time_below_nothing(tmp_path):
    """Another host's clock is behind, or a clock is set back within a process."""
    record(tmp_path, *KILLED, (3000, "start", 8), (3500, "steps", 9), (3400, "save", 9), (4000, "steps", 12))
    found = goodput.read(tmp_path)
    assert min(found.parts.values()) >= 0
    assert found.wall == 4800 + 1000
    assert found.parts["down"] == 0


def test_a_record_that_begins_late_says_so(tmp_path):
    record(tmp_path, *SECOND)
    assert "recorded from step 8 on" in goodput.read(tmp_path).text()


def test_the_line_of_a_split_names_its_parts(tmp_path):
    text = goodput.read(record(tmp_path, *KILLED, *SECOND)).text()
    assert text.startswith("Goodput 29.9 % of 10 s: steps 3 s, ")
    for part in ("compiling 1.5 s", "lost work 600 ms", "down 3.2 s", "restoring 100 ms", "start-up and other 710 ms"):
        assert part in text


# ---------------------------------------------------------------------------------------- the clock


class Batches:
    """Each batch comes after so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.due = seconds, time.perf_counter() + seconds

    def wait(self, seconds):
        time.sleep(min(seconds, max(0.0, self.due - time.perf_counter())))
        return time.perf_counter() >= self.due

    def next(self, state):
        time.sleep(max(0.0, self.due - time.perf_counter()))
        self.due += self.seconds
        return "batch"


def lines(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / goodput.FILE).read_text().splitlines() if text]


def test_the_clock_writes_its_phases_once_it_is_opened(tmp_path, caplog):
    caplog.set_level("INFO")
    with RunClock(tmp_path, time.time() - 100) as clock:
        with clock.phase("restore"):
            time.sleep(0.02)
        assert not list(tmp_path.iterdir())
        clock.open(3)
        with clock.phase("steps"):
            clock.step(4, write=True)
            with clock.phase("save"):
                time.sleep(0.02)
            clock.step(5, write=False)
    found = [(line["phase"], line["step"]) for line in lines(tmp_path)]
    early = [("start", 3), ("other", 3), ("restore", 3), ("other", 3)]
    assert found == [*early, ("steps", 4), ("steps", 4), ("save", 4), ("steps", 5), ("other", 5)]
    parts = parts_of(tmp_path)
    assert 100_000 <= parts["other"] < 160_000
    assert parts["restore"] >= 20
    assert parts["save"] >= 20
    assert caplog.messages[-1].startswith("Goodput ")


def test_nothing_is_written_where_the_run_does_not_begin(tmp_path):
    with RunClock(tmp_path) as clock, clock.phase("restore"):
        pass
    assert clock.text() == ""
    assert not list(tmp_path.iterdir())


def test_a_second_process_goes_on_after_a_line_that_was_cut(tmp_path, caplog):
    caplog.set_level("INFO")
    record(tmp_path, *KILLED, tail='{"time": 5900, "ph')
    with RunClock(tmp_path) as clock:
        clock.open(8)
        assert caplog.messages[-1].startswith("until now: Goodput 5")
    found = goodput.read(tmp_path)
    assert (found.starts, found.parts["lost"]) == (2, 600)


def test_time_without_a_batch_counts_only_while_the_device_is_idle(tmp_path):
    class Step:
        """The arrays of a step that ends at a certain moment."""

    with RunClock(tmp_path) as clock, pytest.MonkeyPatch.context() as patch:
        clock.open(0)
        end = time.perf_counter() + 0.15
        patch.setattr(run_clock, "_finished", lambda running: running is None or time.perf_counter() >= end)
        with clock.phase("steps"):
            assert clock.next(Batches(0.05), None, Step()) == "batch"  # there before the step has ended
            assert clock._waited["data"] < 0.04
            before, began = clock._waited["data"], time.perf_counter()
            assert clock.next(Batches(0.4), None, Step()) == "batch"
            assert clock._waited["data"] - before == pytest.approx(time.perf_counter() - max(end, began), abs=0.05)
            assert clock.next(Batches(0.05), None, None) == "batch"
    assert parts_of(tmp_path)["data"] >= 300


def test_a_batch_that_the_weights_make_is_no_waiting_for_data(tmp_path):
    class Answers(Batches):
        phase = "rollout"

        def next(self, state):
            time.sleep(0.1)

    with RunClock(tmp_path) as clock:
        clock.open(0)
        with clock.phase("steps"):
            clock.next(Answers(0.0), None, None)
    parts = parts_of(tmp_path)
    assert parts["rollout"] >= 99
    assert "data" not in parts


def test_a_phase_that_lasts_is_recorded_while_it_lasts(tmp_path, monkeypatch):
    """A process that is killed in a long compilation, or between two logged steps, has recorded
    most of its time."""
    monkeypatch.setattr(run_clock, "BEAT_SECONDS", 0.02)
    with RunClock(tmp_path) as clock:
        clock.open(0)
        with clock.phase("compile"):
            end = time.monotonic() + 30
            while sum(line["phase"] == "compile" for line in lines(tmp_path)) < 3 and time.monotonic() < end:
                time.sleep(0.01)
    assert sum(line["phase"] == "compile" for line in lines(tmp_path)) >= 4
    assert "run clock" not in {thread.name for thread in threading.enumerate() if not thread.daemon}


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / goodput.FILE).mkdir()
    with RunClock(tmp_path) as clock:
        clock.open(0)
        with clock.phase("steps"):
            clock.step(1, write=True)
    assert "Is a directory; the wall time of this process is not recorded" in caplog.text
    assert goodput.read(tmp_path) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_warning(tmp_path, caplog):
    (tmp_path / goodput.FILE).symlink_to("/dev/full")
    with RunClock(tmp_path) as clock:
        clock.open(0)
        for step in range(5):
            clock.step(step, write=True)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert "No space left on device; a part of the wall time is not recorded" in caplog.text


# ----------------------------------------------------------------------------------------- the page


def test_the_page_has_the_figure_and_the_bar(tmp_path):
    run = record(folders.text_run(tmp_path / "run"), *KILLED, *SECOND)
    page = build_report([run], tmp_path / "page.html").read_text()
    assert '<div class="name">Goodput</div><div class="value">29.9 %</div><div class="note">of 10 s wall time' in page
    section = page.partition("<h2>Wall time</h2>")[2].partition("</section>")[0]
    assert "2 starts, 10 s." in section
    assert "lost work<b>6.0 %</b><span>600 ms</span>" in section
    assert section.count("flex-grow") == section.count("<li>") == 9
    assert headline(load_run(run))["goodput"] == pytest.approx(0.2994, abs=1e-4)


def test_a_run_without_a_record_has_a_page_and_stands_beside_one_with_it(tmp_path):
    old, new = folders.text_run(tmp_path / "old"), record(folders.text_run(tmp_path / "new"), *KILLED)
    assert "Wall time" not in build_report([old], tmp_path / "old.html").read_text()
    together = build_report([old, new], tmp_path / "both.html").read_text()
    row = together.partition("<th>Goodput")[2].partition("</tr>")[0]
    assert "–" in row
    assert "52.1 %" in row
