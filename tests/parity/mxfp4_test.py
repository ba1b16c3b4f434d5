"""Packed weights against transformers' own dequantisation, and a published folder's way in."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.pretrained import folder, mxfp4
from bigmodel_jax.pretrained.names import Tensor
from reference import fixture_folder, load, read


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    return lambda name: fixture_folder(name, python, tmp_path_factory.mktemp("reference"))


def test_dequantised_bits_are_the_references(found):
    with np.load(found("mxfp4") / "reference.npz") as arrays:
        ours = mxfp4.dequantize(arrays["blocks"], arrays["scales"])
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours.astype(np.float32), arrays["plain"])
        np.testing.assert_array_equal(np.signbit(ours.astype(np.float32)), np.signbit(arrays["plain"]))


def tensor(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype.name, lambda: array)


def packed(source, rng):
    """The folder's tensors with the experts' as a published file has them, and the same ones
    plain."""
    names = [n for n in source if n.endswith(("gate_up_proj", "down_proj"))]
    rest = {n: t for n, t in source.items() if n not in names}
    blocks, plain = dict(rest), dict(rest)
    for name in names:
        E, inputs, rows = source[name].shape
        b = rng.integers(0, 256, (E, rows, inputs // 32, 16)).astype(np.uint8)
        s = rng.integers(120, 126, (E, rows, inputs // 32)).astype(np.uint8)
        blocks |= {f"{name}_blocks": tensor(b), f"{name}_scales": tensor(s)}
        plain[name] = tensor(mxfp4.dequantize(b, s))
    return blocks, plain


def test_a_packed_folder_imports_as_the_plain_one(found):
    ref = load(found("gpt_oss"))
    blocks, plain = packed(folder.open_weights(ref.folder), np.random.default_rng(0))
    ours, theirs = (params.paths(read(ref.family, ref.cfg, source)) for source in (blocks, plain))
    for path, x in theirs.items():
        np.testing.assert_array_equal(ours[path], x, path)


def test_half_a_packed_tensor_is_named(found):
    ref = load(found("gpt_oss"))
    blocks, _ = packed(folder.open_weights(ref.folder), np.random.default_rng(0))
    name = "model.layers.1.mlp.experts.down_proj"
    with pytest.raises(ValueError, match=rf"{name}_scales is missing, without which {name} cannot be dequantised"):
        read(ref.family, ref.cfg, {n: t for n, t in blocks.items() if n != f"{name}_scales"})
    cut = blocks | {f"{name}_scales": tensor(np.zeros((4, 3, 1), np.uint8))}
    with pytest.raises(ValueError, match=rf"{name}_blocks \(4, 32, 1, 16\) and {name}_scales \(4, 3, 1\)"):
        read(ref.family, ref.cfg, cut)


def test_another_quantisation_is_refused(found):
    ref = load(found("gpt_oss"))
    hf = ref.family.to_hf(ref.cfg)
    assert ref.family.from_hf(hf | {"quantization_config": {"quant_method": "mxfp4"}}) == ref.cfg
    with pytest.raises(ValueError, match="quant_method = 'awq' is not supported; supported: 'mxfp4'"):
        ref.family.from_hf(hf | {"quantization_config": {"quant_method": "awq"}})
