"""Weights in 4-bit normal floats against bitsandbytes: the same tables, codes, scales and values
for the same blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import dynamic8, storage
from bigmodel_jax.core.storage import Blocks
from reference import fixture_folder


@pytest.fixture(scope="module")
def theirs(request, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    with np.load(fixture_folder("normal_floats", python, tmp_path_factory.mktemp("reference")) / "reference.npz") as f:
        return dict(f)


def test_tables_are_the_references(theirs):
    np.testing.assert_array_equal(np.asarray(storage.NF4, np.float32), theirs["levels"])
    np.testing.assert_array_equal(np.asarray(dynamic8.LEVELS, np.float32), theirs["map"])
    decoded = dynamic8.decode(jnp.arange(256, dtype=jnp.uint8))
    np.testing.assert_allclose(decoded, theirs["map"], rtol=3e-7)


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["single", "double"])
def test_codes_scales_and_values_are_the_references(theirs, scales):
    """Two codes lie in a byte in another way there: neighbours share a byte, and the first one has
    the upper bits."""
    w = theirs["w"]
    node = Blocks("nf4", 64, scales == "double").pack(jnp.asarray(w)[None])
    blocks = np.asarray(node.values).reshape(-1, 32)
    ours = np.concatenate([blocks & 15, blocks >> 4], axis=1)
    packed = theirs[f"{scales}/packed"]
    np.testing.assert_array_equal(ours, np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1, 64))
    np.testing.assert_array_equal(np.asarray(node.scales).ravel(), theirs[f"{scales}/scales"])
    error = np.abs(node.dense("float32")[0] - theirs[f"{scales}/values"].astype(np.float32)).reshape(-1, 64).max(1)
    # Scales that the kernel of the reference's CPU build rounds to the neighbour of the nearest.
    off = np.abs(theirs["double/kernel"].astype(int) - theirs["double/scales"]) * (scales == "double")
    assert off.max() <= 1
    assert off.mean() < 0.03
    assert error[off == 0].max() < 1e-3 * np.abs(w).max(), "they are kept in float16"
    if scales == "double":
        np.testing.assert_allclose(node.groups[0], theirs["groups"], rtol=1e-5)
        np.testing.assert_allclose(node.offset[0], theirs["offset"], rtol=1e-6)
