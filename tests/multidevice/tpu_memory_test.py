"""The real TPU compiler's word on what training steps hold in memory, and where."""

import importlib.util
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("tpu_memory_programs.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed"),
]


@pytest.fixture(scope="module")
def found(compiled_for_tpus):
    return compiled_for_tpus(PROGRAMS, "steps")


@pytest.mark.exhaustive
def test_a_head_in_blocks_is_gathered_and_scattered_and_never_whole(compiled_for_tpus):
    """On 64 chips a block has 8,192 rows of 1,024 numbers, and two rings of 8 sum its gradient."""
    whole, blocks = compiled_for_tpus(PROGRAMS, "heads").values()
    assert whole["whole_tables"]
    assert whole["reduced"], "the compiler's own choice: all of the gradient on every chip"
    assert blocks["scattered"] == ["f32[128,8192]", "f32[16,8192]"]
    assert not blocks["reduced"]
    assert not blocks["whole_tables"]
    assert blocks["temporaries"] < 0.25 * whole["temporaries"]


def test_inputs_of_layers_wait_in_the_hosts_memory(found):
    inputs = 4 * 2 * 128 * 256 * 2  # layers, rows of a chip, tokens, dimension, bytes
    assert found["offload_input"]["host_temporaries"] == inputs
    assert found["plain"]["temporaries"] - found["offload_input"]["temporaries"] > 0.9 * inputs


def test_moments_are_arguments_in_the_hosts_memory(found):
    plain, offloaded = found["plain"], found["offload_optimizer"]
    assert not plain["host_arguments"]
    # Two moments beside the parameters: two thirds of the state.
    assert offloaded["host_arguments"] > 0.66 * plain["arguments"]
    assert offloaded["arguments"] + offloaded["host_arguments"] == plain["arguments"]


@pytest.mark.exhaustive  # the test above has the bytes that move
def test_moments_on_the_host_leave_the_device_more_room(compiled_for_tpus):
    found = compiled_for_tpus(PROGRAMS, "wide").values()
    plain, offloaded = (step["arguments"] + step["temporaries"] for step in found)
    assert offloaded < 0.9 * plain


def test_most_products_of_an_int8_step_have_int8_operands(found):
    """The other products are the gradients of weights, attention, and the head."""
    assert not found["plain"]["products_of_8_bits"]
    assert found["int8"]["products_of_8_bits"] > found["int8"]["products"]


def test_most_products_of_a_float8_step_have_float8_operands(found):
    assert not found["plain"]["products_of_float8"]
    assert found["float8"]["products_of_float8"] > 4 * found["float8"]["products"]
