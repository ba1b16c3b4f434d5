"""The mean of weights is that of exact arithmetic, rounded; what has no mean stays as it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.ensemble import averages

SPEC = {
    "w": Param((64, 3), (None, None), normal(1.0)),
    "base": Param((4,), (None,), normal(1.0), kind="constant"),
    "count": Param((), (), normal(1.0), dtype="int32", trainable=False),
    "mean": Param((5,), (None,), normal(1.0), trainable=False),
}


def member(seed, dtype):
    rng = np.random.default_rng(seed)
    w, mean = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((64, 3), (5,)))
    return {"w": w, "base": jnp.arange(4.0), "count": jnp.int32(7), "mean": mean}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mean_is_that_of_float64_rounded_once(dtype):
    members = [member(seed, dtype) for seed in range(3)]
    found = averages.mean(iter(members), SPEC)
    for name in ("w", "mean"):
        exact = np.mean([np.asarray(m[name], np.float64) for m in members], axis=0).astype(np.float32)
        assert found[name].dtype == jnp.float32
        np.testing.assert_array_equal(found[name], exact)


def test_the_mean_of_equal_members_is_the_member():
    one = member(0, "float32")
    found = averages.mean([one] * 5, SPEC)
    np.testing.assert_array_equal(found["w"], one["w"])


def test_constants_and_whole_numbers_stay_those_of_the_first_member():
    found = averages.mean([member(seed, "float32") for seed in range(2)], SPEC)
    np.testing.assert_array_equal(found["base"], np.arange(4.0))
    assert found["count"] == 7
    assert found["count"].dtype == jnp.int32


def test_a_total_is_not_changed_by_what_is_added_to_it():
    first, second = (member(seed, "float32") for seed in range(2))
    total = averages.total_of(first, SPEC)
    total.add(second, SPEC)
    np.testing.assert_array_equal(total.mean()["w"], first["w"])
