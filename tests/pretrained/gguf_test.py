"""GGUF files written by the gguf package, read as the model they came from."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from bigmodel_jax import cli
from bigmodel_jax.pretrained import folder, gguf

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "llama"
HEADS = {"attn_q": 4, "attn_k": 2}


def permute(x: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's converter: rows from (half, pair) to interleaved order."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(path: Path, kind: GGMLQuantizationType, architecture: str = "llama", pre: str = "smollm") -> dict:
    """The Llama fixture as GGUF; returns its tensors by Hugging Face name."""
    source = folder.open_weights(FIXTURE)
    tensors = {name: t.read() for name, t in source.items()}
    back = {theirs: ours for ours, theirs in gguf.NAMES.items()}
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = ["<|endoftext|>", *(chr(33 + i) for i in range(94)), "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 95)
    writer.add_token_merges(["a b"])
    for name, x in tensors.items():
        parts = name.removesuffix(".weight").split(".")
        layer = f"blk.{parts[2]}." if "layers" in parts else ""
        ours = back[".".join(parts[3:]) if layer else ".".join(parts)]
        x = permute(x, HEADS[ours]) if ours in HEADS else x
        used = kind if x.ndim == 2 and x.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        writer.add_tensor(f"{layer}{ours}.weight", quantize(x, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize(
    ("kind", "worst"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 5e-3), ("Q4_1", 0.1), ("Q4_0", 0.1)]
)
def test_weights_and_config_come_back(kind, worst, tmp_path):
    tensors = write(tmp_path / "m.gguf", GGMLQuantizationType[kind])
    found = gguf.open_gguf(tmp_path / "m.gguf")
    family, cfg = folder.read_config(FIXTURE)
    assert (found.family, found.config) == (family, cfg)
    assert set(found.source) == set(tensors)
    for name, tensor in found.source.items():
        assert tensor.shape == tensors[name].shape
        np.testing.assert_allclose(tensor.read(), tensors[name], atol=worst)


def test_the_tokenizer_comes_back(tmp_path):
    write(tmp_path / "m.gguf", GGMLQuantizationType.F32)
    tokenizer = gguf.open_gguf(tmp_path / "m.gguf").tokenizer
    assert tokenizer.get_vocab_size() == 96
    assert tokenizer.encode("xab").tokens == ["x", "ab"]
    assert tokenizer.decode(tokenizer.encode("cab").ids) == "cab"


def test_a_model_written_as_gguf_generates(tmp_path, capsys):
    write(tmp_path / "m.gguf", GGMLQuantizationType.Q8_0)
    run = tmp_path / "run"
    cli.main(["import", str(tmp_path / "m.gguf"), "--run_dir", str(run)])
    assert "Llama of 21,664" in capsys.readouterr().out
    cli.main(["generate", str(run), "--prompt", "ab", "--max_tokens", "5"])
    assert capsys.readouterr().out.startswith("ab")


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(data[: len(data) // 3])
    elif kind == "not gguf":
        path.write_bytes(b"hello" * 100)
    else:  # the type number of the first tensor, behind its name, number of dimensions and two sizes
        at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
        data[at : at + 4] = (99).to_bytes(4, "little")
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "said"), [("cut", "cut short"), ("not gguf", "not a GGUF file"), ("quantisation", "type 99 is unknown")]
)
def test_a_damaged_file_is_one_line(kind, said, tmp_path, capsys):
    write(tmp_path / "m.gguf", GGMLQuantizationType.F32)
    damage(tmp_path / "m.gguf", kind)
    with pytest.raises(SystemExit) as stop:
        cli.main(["import", str(tmp_path / "m.gguf"), "--run_dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_another_architecture_or_tokenizer_is_refused_by_name(tmp_path):
    write(tmp_path / "m.gguf", GGMLQuantizationType.F32, architecture="llamma")
    with pytest.raises(ValueError, match=r"'llamma' is not supported \(perhaps you meant 'llama'\)"):
        gguf.open_gguf(tmp_path / "m.gguf")
    write(tmp_path / "n.gguf", GGMLQuantizationType.F32, pre="unheard-of")
    with pytest.raises(ValueError, match="tokenizer.ggml.pre = 'unheard-of'"):
        gguf.open_gguf(tmp_path / "n.gguf")
