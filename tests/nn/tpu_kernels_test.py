"""The real TPU compiler puts splash's kernels where attention is: forward, and dq and dkv of the
backward pass."""

import importlib.util
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("tpu_programs.py")
FORWARD = "splash_mha_fwd_segmented_residuals"
BACKWARD = ["splash_mha_dkv_segmented_no_residuals", "splash_mha_dq_segmented_no_residuals"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed"),
]


@pytest.fixture(scope="module")
def found(compiled_for_tpus):
    return compiled_for_tpus(PROGRAMS)


@pytest.mark.parametrize("case", ["softcap", "sinks", "full", "latent", "narrow", "ulysses"])
def test_attention_is_three_kernels(case, found):
    assert found[case] == [*BACKWARD, FORWARD]


def test_layers_that_differ_in_their_window_are_one_program_with_both(found):
    assert found["window_in_some_layers"] == sorted([*BACKWARD, FORWARD] * 2)


def test_the_forward_kernel_runs_again_only_where_nothing_of_it_is_kept(found):
    assert found["train_step, full"] == [*BACKWARD, FORWARD, FORWARD]
    assert found["train_step, save_attn"] == [*BACKWARD, FORWARD]


def test_a_ring_has_kernels_for_its_own_keys_and_for_those_of_each_side(found):
    """Over two devices, the keys are the device's own, or those of an earlier device, or those of a
    later one."""
    assert found["ring"] == sorted([*BACKWARD, FORWARD] * 3)
    assert found["ring_full"] == sorted([*BACKWARD, FORWARD] * 2)


def test_a_ring_with_a_window_compiles_without_a_kernel(found):
    assert found["ring_window"] == []
