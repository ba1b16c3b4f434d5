import io
import time

import pytest
from rich.console import Console

from bigmodel_jax.report import progress
from bigmodel_jax.report.progress import Progress, clock, short, start_table


def console(terminal, width=120):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width)


def test_not_a_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    out = console(terminal=False, width=20)
    with Progress(3, console=out) as bar:
        bar.message("saved [step 1]")
        for step in (1, 2, 3):
            bar.update(step, 2.5, 12_345.0, 0.301, accuracy=0.5)
    text = out.file.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "saved [step 1]"
    assert len(lines) == 4
    assert lines[1].startswith("step 1/3  loss 2.5  12.3k tokens/s  MFU 30.1%  accuracy 0.5")
    assert "left" in lines[1]
    assert "left" not in lines[3]


def test_plain_lines_are_rare_and_the_last_step_is_said_once():
    out = console(terminal=False)
    with Progress(100, console=out) as bar:
        for step in range(1, 101):
            bar.update(step, 1.0)
    assert [line.split()[1] for line in out.file.getvalue().splitlines()] == ["100/100"]


def test_a_terminal_gets_a_bar():
    out = console(terminal=True)
    with Progress(10, console=out) as bar:
        bar.update(10, 2.5)
    assert "━" in out.file.getvalue()
    assert "step 10/10  loss 2.5" in out.file.getvalue()


def test_disabled_prints_nothing():
    out = console(terminal=True)
    with Progress(10, console=out, enabled=False) as bar:
        bar.message("hello")
        bar.update(10, 2.5)
    assert out.file.getvalue() == ""


def test_an_update_costs_less_than_a_tenth_of_a_millisecond():
    with Progress(10_000, console=console(terminal=True)) as bar:
        start = time.perf_counter()
        for step in range(2000):
            bar.update(step, 2.5, 12_345.0, 0.3)
        assert (time.perf_counter() - start) / 2000 < 1e-4


def test_time_left_counts_from_the_step_resumed_at(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Progress(120, 100, console=console(terminal=False)) as bar:
        now[0] += 20.0
        bar.update(110)
        assert bar.line().endswith("0:20  left 0:20")


def test_start_table_shows_every_row_under_the_name():
    out = console(terminal=False)
    out.print(start_table([("parameters", "6.1M"), ("mesh", "data 8")], "lm_tiny"))
    text = out.file.getvalue()
    assert all(word in text for word in ("lm_tiny", "parameters", "6.1M", "mesh", "data 8"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (999.0, "999"), (12_345.0, "12.3k"), (6.13e6, "6.13M"), (7e9, "7B"), (1.68e12, "1.68T")],
)
def test_short(value, text):
    assert short(value) == text


def test_clock():
    assert (clock(59.9), clock(61), clock(3661)) == ("0:59", "1:01", "1:01:01")
