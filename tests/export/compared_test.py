"""Numbers of two runtimes against each other, and the line that says what a converter could not
do."""

import numpy as np
import pytest

from bigmodel_jax.export import compared
from bigmodel_jax.export.compared import Case
from bigmodel_jax.models import MODELS


def test_a_difference_is_a_share_of_large_values_and_absolute_among_small_ones():
    assert compared.difference(np.float32([0.5, -0.25]), np.float32([0.5, -0.125])) == 0.125
    assert compared.difference(np.float32([100, 1]), np.float32([100, 2])) == 0.01
    assert compared.difference(np.int32([3]), np.int32([3])) == 0.0


@pytest.mark.parametrize("found", [np.float32([1, 2, 3]), np.float32([1, np.nan]), np.float32([[1, 2]])])
def test_another_shape_and_what_is_not_finite_are_infinitely_far(found):
    assert compared.difference(np.float32([1, 2]), found) == float("inf")


def test_the_worst_of_all_cases_counts(tmp_path):
    x, y = np.float32([1, 2]), np.float32([0.5, 1])
    compared.save(Case({"a": x}, {"b": x / 2}), tmp_path, "forward", 0)
    compared.save(Case({"a": y}, {"b": y / 2 + 0.25}), tmp_path, "forward", 1)
    assert compared.worst(tmp_path, "forward", lambda given: {"b": given["a"] / 2}) == 0.25


def refusal(made: dict, fixed: bool = False) -> str:
    names = "export: --format litert", "litert-converter 0.5.0", "decode", "MixtralConfig"
    with pytest.raises(ValueError) as caught:
        compared.check(*names, made, fixed=fixed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_line_names_the_operation_and_the_model():
    error = {"operation": "STABLEHLO_SORT", "where": "", "said": "Didn't find op"}
    line = refusal({"error": error})
    assert line.startswith("export: --format litert: the program decode of MixtralConfig uses STABLEHLO_SORT, which ")
    assert "--batch" not in line


def test_what_fails_at_an_open_size_says_where_and_the_way_out():
    error = {"operation": "", "where": "`len(x)` (moe.py:128)", "said": "no integer"}
    line = refusal({"error": error})
    assert "uses `len(x)` (moe.py:128), which" in line
    assert line.endswith("no integer; --batch N --length N give it fixed sizes")
    assert refusal({"error": error}, fixed=True).endswith("no integer")
    assert "--batch N" in refusal({"error": error | {"operation": "mhlo.gather", "said": "Dynamic shaped operand"}})


def test_an_error_of_onnx_runtime_begins_with_what_is_wrong():
    error = ValueError(
        "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from /a/b.onnx failed:Type Error: Optype (Add)"
    )
    assert compared.first_line(error) == "Type Error: Optype (Add)"


@pytest.mark.parametrize("difference", [2e-4, float("inf"), float("nan")])
def test_other_numbers_are_refused(difference):
    assert "gives other numbers" in refusal({"difference": difference})


def test_a_place_is_the_innermost_line_of_a_model():
    with pytest.raises(KeyError) as caught:
        MODELS["llama"].tiny().make().apply({}, {"tokens": np.zeros((1, 2), np.int32)})
    assert compared.place(caught.value).startswith("`layers, outside = params[self.stack]")
    assert "(base.py:" in compared.place(caught.value)
