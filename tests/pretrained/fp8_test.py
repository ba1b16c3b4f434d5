"""DeepSeek's 8-bit weights: by hand, from a folder as it is published, and what is wrong with
one."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from bigmodel_jax.pretrained import folder, fp8
from bigmodel_jax.pretrained.family import spec_by_path

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "deepseek"
E4M3 = jnp.float8_e4m3fn
QUANTIZED = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def e4m3(byte: int) -> float:
    """The value of a byte: one sign bit, four of an exponent with bias 7, three of a mantissa
    (arXiv:2209.05433)."""
    sign, exponent, mantissa = (-1.0) ** (byte >> 7), byte >> 3 & 15, byte & 7
    return sign * (2.0**-6 * mantissa / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8))


def test_values_by_hand():
    """The matrix is 200 x 300: it has two by three blocks, and the last ones are cut off."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (200, 300)).astype(np.uint8)
    bits[(bits & 127) == 127] = 0  # not a number
    scales = rng.uniform(1e-4, 1e-2, (2, 3)).astype(np.float32)
    found = fp8.dequantize(bits.view(E4M3), scales)
    for row, column in [(0, 0), (127, 127), (127, 128), (128, 127), (128, 255), (128, 256), (199, 299)]:
        factor = scales[row // 128, column // 128]
        assert found[row, column] == np.float32(e4m3(int(bits[row, column]))) * factor
    assert found.dtype == np.float32


def published(path: Path) -> dict[str, np.ndarray]:
    """The fixture as a published folder: matrices of the layers in 8 bits; returns what they stand
    for."""
    shutil.copytree(FIXTURE, path, dirs_exist_ok=True)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZED}))
    plain, packed = {}, {}
    for name, x in load_file(path / "model.safetensors").items():
        plain[name] = packed[name] = x
        if name.endswith("proj.weight"):
            scale = np.abs(x).max(keepdims=True) / 448  # the largest e4m3
            packed |= {name: (x / scale).astype(E4M3), f"{name}_scale_inv": scale.astype(np.float32)}
            plain[name] = packed[name].astype(np.float32) * scale.astype(np.float32)
    save_file(packed, path / "model.safetensors")
    return plain


def load(path: Path) -> dict[str, np.ndarray]:
    family, cfg = folder.read_config(path)
    where = dict.fromkeys(spec_by_path(cfg), SingleDeviceSharding(jax.devices()[0]))
    return folder.load_params(family, cfg, folder.open_weights(path), where, "float32")


def test_a_published_folder_imports_as_the_plain_one(tmp_path):
    plain = published(tmp_path / "packed")
    assert folder.open_weights(tmp_path / "packed")["model.layers.0.self_attn.o_proj.weight"].dtype == "float8_e4m3fn"
    shutil.copytree(FIXTURE, tmp_path / "plain")
    save_file(plain, tmp_path / "plain" / "model.safetensors")
    ours, theirs = load(tmp_path / "packed"), load(tmp_path / "plain")
    for path, x in theirs.items():
        np.testing.assert_array_equal(ours[path], x, path)


def test_what_is_missing_or_does_not_fit_is_named(tmp_path):
    published(tmp_path)
    tensors = load_file_raw(tmp_path)
    name = "model.layers.1.self_attn.o_proj.weight"
    for change, said in (
        ({f"{name}_scale_inv": None}, rf"{name}_scale_inv is missing, without which {name}"),
        ({name: None}, rf"{name} is missing, of which there is {name}_scale_inv"),
        ({f"{name}_scale_inv": np.ones((2, 1), np.float32)}, r"expected \(1, 1\), one for each 128 x 128"),
    ):
        save_file({n: x for n, x in (tensors | change).items() if x is not None}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=said):
            load(tmp_path)


def load_file_raw(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in folder.open_weights(path).items()}


def test_another_quantisation_is_refused():
    family, cfg = folder.read_config(FIXTURE)
    hf = family.to_hf(cfg)
    assert family.from_hf(hf | {"quantization_config": QUANTIZED}) == cfg
    for field, value in (("quant_method", "awq"), ("weight_block_size", [64, 64]), ("fmt", "e5m2")):
        with pytest.raises(ValueError, match=f"{field} = .* is not supported"):
            family.from_hf(hf | {"quantization_config": QUANTIZED | {field: value}})
