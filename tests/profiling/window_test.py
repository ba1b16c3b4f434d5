"""The steps that a profile asks for, and one line for those that it cannot have."""

import pytest

from bigmodel_jax.profiling.window import Window, check


def test_a_window_is_the_steps_between_two_counts():
    window = check("100:110", steps=110, start=100)
    assert window == Window(100, 110)
    assert window.steps == 10
    assert check("", steps=5) is None


@pytest.mark.parametrize(
    ("text", "start", "said"),
    [
        ("100:110", 0, "train.profile = '100:110': the run has 50 steps; LAST must be at most 50, as in 40:50"),
        ("ten", 0, "train.profile = 'ten'; it must be FIRST:LAST in steps, such as 100:110"),
        ("10", 0, "it must be FIRST:LAST"),
        ("-3:10", 0, "it must be FIRST:LAST"),
        ("7:7", 0, "train.profile = '7:7' holds no step"),
        ("9:7", 0, "holds no step"),
        ("10:20", 30, "train.profile = '10:20' begins before step 30, from which the run continues"),
        ("10:20", 50, "FIRST must be at least 50, and train.steps above it"),
    ],
)
def test_a_window_that_the_run_cannot_take_is_one_line(text, start, said):
    with pytest.raises(ValueError) as caught:
        check(text, steps=50, start=start)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
