"""Whisper in CTranslate2's form: a file written as CTranslate2 writes it gives the tensors of the
Hugging Face folder."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bigmodel_jax.pretrained import ctranslate2
from bigmodel_jax.pretrained.whisper import WHISPER

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "whisper"
BACK = {v: k for k, v in ctranslate2.PARTS.items()}
NORMS = {"weight": "gamma", "bias": "beta"}


def theirs(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by CTranslate2's names, with queries, keys and values in one matrix."""
    out = {}
    for name, x in given.items():
        _, side, *rest = name.split(".")
        if rest[0] == "layers":
            module, what = ".".join(rest[2:-1]), rest[-1]
            if module in BACK:
                out[f"{side}/layer_{rest[1]}/{BACK[module]}/{NORMS[what] if 'norm' in module else what}"] = x
        elif rest[0] == "layer_norm":
            out[f"{side}/layer_norm/{NORMS[rest[1]]}"] = x
        else:
            whole = {v: k for k, v in ctranslate2.WHOLE.items()}
            out[f"{side}/{whole['.'.join(rest)]}"] = x
    for side, module, letters, target in (
        ("encoder", "self_attn", "qkv", "self_attention/linear_0"),
        ("decoder", "self_attn", "qkv", "self_attention/linear_0"),
        ("decoder", "encoder_attn", "kv", "attention/linear_1"),
    ):
        for i in range(2):
            prefix = f"model.{side}.layers.{i}.{module}."
            parts = [given[f"{prefix}{letter}_proj.weight"] for letter in letters]
            biases = [given.get(f"{prefix}{letter}_proj.bias", np.zeros(len(parts[0]), "f")) for letter in letters]
            out[f"{side}/layer_{i}/{target}/weight"] = np.concatenate(parts)
            out[f"{side}/layer_{i}/{target}/bias"] = np.concatenate(biases)
    return out


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write(folder: Path, tensors: dict[str, np.ndarray], spec: str = "WhisperSpec") -> bytes:
    body = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(tensors) + 1)
    body += text("num_heads") + struct.pack("<BBIh", 0, 2, 2, 4)  # a number of the specification: int16
    for name, x in tensors.items():
        body += text(name) + struct.pack("<B", x.ndim) + struct.pack(f"<{x.ndim}I", *x.shape)
        body += struct.pack("<BI", 0, x.nbytes) + x.astype("<f4").tobytes()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3]}))
    (folder / "model.bin").write_bytes(body + struct.pack("<I", 0))
    return body


def test_the_tensors_and_sizes_are_those_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ctranslate2, "HEAD_DIM", 8)
    expected = load_file(FIXTURE / "model.safetensors")
    write(tmp_path / "whisper", theirs(expected))
    hf, source, special = ctranslate2.open_whisper(tmp_path / "whisper")
    assert source.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(source[name].read(), x)
    cfg, found = WHISPER.from_hf(json.loads((FIXTURE / "config.json").read_text())), WHISPER.from_hf(hf)
    sizes = ("num_mels", "num_layers", "num_decoder_layers", "embed_dim", "num_heads", "mlp_dim", "max_audio_len")
    assert [getattr(found, name) for name in sizes] == [getattr(cfg, name) for name in sizes]
    assert special.generation == {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3]}


def test_what_is_no_such_file_is_one_line(tmp_path):
    folder, expected = tmp_path / "whisper", load_file(FIXTURE / "model.safetensors")
    body = write(folder, theirs(expected))
    for data, reason in (
        (body[: len(body) // 2], "cut short"),
        (b"\x07\0\0\0" + body[4:], "no CTranslate2 model of version 5 or 6"),
    ):
        (folder / "model.bin").write_bytes(data)
        with pytest.raises(ValueError, match=reason) as error:
            ctranslate2.open_whisper(folder)
        assert "\n" not in str(error.value)
    write(folder, {}, spec="TransformerSpec")
    with pytest.raises(ValueError, match="it is a TransformerSpec; of CTranslate2's models only WhisperSpec is read"):
        ctranslate2.open_whisper(folder)
