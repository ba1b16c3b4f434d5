"""The lines before the first step: at once, one a stage, and gone from a terminal when there is
something to show."""

import io
import subprocess
import sys
import time

from rich.console import Console

from bigmodel_jax.report.stages import Stages


def test_a_log_file_gets_one_plain_line_a_stage():
    file = io.StringIO()
    with Stages(Console(file=file)) as stages:
        stages.begin("Importing packages")
        stages.begin("Compiling the step")
    assert file.getvalue() == "Importing packages ...\nCompiling the step ...\n"


def test_a_terminal_shows_the_stage_in_progress_and_keeps_none():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60)
    with Stages(console) as stages:
        stages.begin("Importing packages")
        time.sleep(0.3)  # it is drawn twelve times a second
        stages.begin("Compiling the step")
        stages.end()
        shown = file.getvalue()
        console.print("model")
    assert "Importing packages ..." in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the line is erased
    assert file.getvalue().endswith("model\n")


def test_a_quiet_console_says_nothing():
    file = io.StringIO()
    with Stages(Console(file=file, force_terminal=True, quiet=True)) as stages:
        stages.begin("Importing packages")
    assert not file.getvalue()


def test_the_first_line_comes_before_jax_is_imported():
    code = "import sys, bigmodel_jax.verbs.runs as r; assert not {'jax', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
