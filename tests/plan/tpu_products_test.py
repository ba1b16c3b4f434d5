"""What the real TPU compiler expects of a large product, on every chip that `plan` knows."""

import functools
import importlib.util
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed"),
]


@pytest.fixture(scope="module")
def found(compiled_for_tpus):
    """found(topology): what the program prints."""
    return functools.cache(functools.partial(compiled_for_tpus, Path(__file__).with_name("tpu_products.py")))


# The oldest chip with our options, and the newest.
@pytest.mark.few("v5e:2x2-0.95", "tpu7x:2x2x1-0.9")
@pytest.mark.parametrize(
    ("topology", "share"),
    [("v4:2x2x1", 0.9), ("v5e:2x2", 0.95), ("v5p:2x2x1", 0.95), ("v6e:2x2", 0.85), ("tpu7x:2x2x1", 0.9)],
)
def test_a_large_product_comes_close_to_the_chips_peak_and_not_above_it(topology, share, found):
    """This checks the clock rate in which the compiler counts."""
    peak, ours, _ = found(topology)
    assert share < peak / ours < 1.0


@pytest.mark.few("v5e:2x2", "tpu7x:2x2x1")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_our_options_make_it_faster(topology, found):
    _, ours, without = found(topology)
    assert ours < 0.94 * without
