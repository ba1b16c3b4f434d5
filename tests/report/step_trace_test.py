"""The record of what each step was: to the step, over kills and rollbacks."""

import numpy as np

from bigmodel_jax.report import step_trace
from bigmodel_jax.report.step_trace import StepTrace


def written(folder, start: int, *steps: tuple[int, float]) -> None:
    trace = StepTrace(folder, start)
    for digest, loss in steps:
        trace.write(np.uint32(digest), np.float32(loss))
    trace.close()


def test_steps_that_are_taken_again_replace_their_lines(tmp_path):
    written(tmp_path, 0, (1, 0.5), (2**32 - 1, np.nan), (3, 0.25))
    written(tmp_path, 1, (4, np.inf))
    known, digests, losses = step_trace.read(tmp_path)
    assert known.all()
    assert digests.tolist() == [1, 4]
    assert losses.tolist() == [0.5, np.inf]


def test_what_the_file_does_not_say_is_unknown(tmp_path):
    """An older version took the first steps, a kill cut a line, and another line was damaged."""
    written(tmp_path, 2, (7, 1.0), (8, 2.0))
    path = tmp_path / step_trace.FILE
    path.write_bytes(path.read_bytes()[:-3])
    assert step_trace.read(tmp_path)[0].tolist() == [False, False, True]
    written(tmp_path, 4, (9, 3.0))
    known, digests, _ = step_trace.read(tmp_path)
    assert known.tolist() == [False, False, True, False, True]
    assert digests[4] == 9
    assert step_trace.read(tmp_path / "nothing")[0].size == 0


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / step_trace.FILE).mkdir()
    written(tmp_path, 0, (1, 1.0))
    assert "further steps are not recorded there" in caplog.text
