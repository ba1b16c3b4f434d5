"""Reward functions in processes of their own: what they return, and whatever else they do, is one
line with the sample."""

import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.training import rewards
from bigmodel_jax.training.rewards import Judges, Sample, failure

FILE = """
import os
import time

def length(prompt, response, record):
    return len(response) + record["more"]

def raises(prompt, response, record):
    raise KeyError("answer")

def hangs(prompt, response, record):
    time.sleep(3600) if response == "slow" else None
    return 1

def not_a_number(prompt, response, record):
    return float("nan")

def says_nothing(prompt, response, record):
    pass

def dies(prompt, response, record):
    os._exit(1) if response == "die" else None
    return 2
"""


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "my_rewards.py"
    path.write_text(FILE)
    return lambda *functions: tuple(f"{path}:{function}" for function in functions)


def scored(judges: Judges, *responses: str):
    waiting = [judges.submit(Sample("p", response, {"more": 0.5})) for response in responses]
    return [wait() for wait in waiting]


def test_each_function_gives_a_number_or_says_why_not(names):
    functions = names("length", "raises", "not_a_number", "says_nothing")
    judges = Judges(functions, 5.0)
    (given,) = scored(judges, "four")
    judges.close()
    assert given[0] == 4.5
    assert given[1].startswith("raised KeyError: 'answer' (line 9 of ")
    assert given[2:] == ["returned nan, which is no finite number", "returned None, which is no finite number"]
    sample = Sample("p", "four", {})
    line = failure(functions, given, sample)
    assert line.startswith(f"objective.reward: {functions[1]} raised KeyError")
    assert line.endswith("prompt 'p', response 'four'")
    assert "\n" not in line
    assert failure(functions[:1], given[:1], sample) == ""


class Tensor:
    """A value that refuses to be a number with an error of its own, as torch's tensors do."""

    def __float__(self):
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")

    def __repr__(self):
        return "tensor([0.,\n        0.])"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float32(0.5), 0.5),
        (jnp.asarray(2), 2.0),
        (True, 1.0),
        (-(10**400), "which is no finite number"),
        (Tensor(), "returned tensor([0.,         0.]), which is no finite number"),
        (np.zeros((3, 2)), "which is no finite number"),
        ([1.0], "returned [1.0], which is no finite number"),
        ("0.5", "returned '0.5', which is no finite number"),
        (math.inf, "returned inf, which is no finite number"),
        (SystemExit(3), "raised SystemExit: 3"),
    ],
)
def test_what_a_function_may_return(value, says, monkeypatch):
    def function(prompt, response, record):
        if isinstance(value, SystemExit):
            raise value
        return value

    monkeypatch.setattr(rewards.user_code, "find", lambda option, name: function)
    found = rewards._call("any:function", 5.0, Sample("p", "r", {}))
    assert found == says if isinstance(says, float) else says in found
    assert "\n" not in str(found)


@pytest.mark.slow
def test_a_function_that_hangs_or_ends_its_process_costs_its_own_samples_alone(names):
    judges = Judges(names("hangs"), 0.3)
    first, slow, last = scored(judges, "quick", "slow", "quick")
    assert first == last == [1.0]
    assert slow[0].startswith("raised TimeoutError: took longer than 0.3 s")
    judges.close()
    judges = Judges(names("dies"), 0.5)
    scored(judges, "live")  # the processes have started
    began = time.monotonic()
    assert "did not return within 0.5 s" in scored(judges, "die")[0][0]
    assert time.monotonic() - began < 30
    assert scored(judges, "live") == [[2.0]]
    judges.close()
