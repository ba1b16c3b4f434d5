"""GGUF files written by the gguf package, read as the model they came from."""

import dataclasses
import functools
import io
import math
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, dequantize, quantize

from bigmodel_jax import cli
from bigmodel_jax.nn import position
from bigmodel_jax.nn.position import RopeScaling
from bigmodel_jax.pretrained import folder, gguf, gguf_config
from bigmodel_jax.pretrained.family import rope_from_hf

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "llama"
HEADS = {"attn_q": 4, "attn_k": 2}


def permute(x: np.ndarray, heads: int) -> np.ndarray:
    """Brings rows from the order (half, pair) to the interleaved one, as llama.cpp's converter
    does."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def byte_level(writer: GGUFWriter, pre: str = "smollm", model: str = "gpt2") -> None:
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    tokens = ["<|endoftext|>", *(chr(33 + i) for i in range(94)), "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 95)
    writer.add_token_merges(["a b"])


def open_writer(path: Path, architecture: str = "llama", tokenizer=byte_level) -> GGUFWriter:
    """A writer with the sizes of the Llama fixture."""
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
    tokenizer(writer)
    return writer


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    tokenizer=byte_level,
    fixture: Path = FIXTURE,
    more=lambda writer: None,
) -> dict:
    """The Llama fixture as GGUF; returns its tensors by Hugging Face name. more: adds keys and
    tensors."""
    source = folder.open_weights(fixture)
    tensors = {name: t.read() for name, t in source.items()}
    back = {theirs: ours for ours, theirs in gguf.NAMES.items()}
    writer = open_writer(path, architecture, tokenizer)
    more(writer)
    for name, x in tensors.items():
        parts = name.removesuffix(".weight").split(".")
        layer = f"blk.{parts[2]}." if "layers" in parts else ""
        ours = back[".".join(parts[3:]) if layer else ".".join(parts)]
        x = permute(x, HEADS[ours]) if ours in HEADS else x
        used = kind if x.ndim == 2 and x.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        writer.add_tensor(f"{layer}{ours}.weight", quantize(x, used), raw_dtype=used)
    finish(writer)
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


# ---------------------------------------------------------------- rotary positions


def published_factors(theta, head_dim, factor, low, high, length) -> np.ndarray:
    """Computes `rope_freqs.weight` as llama.cpp's converter does for Llama 3.1."""
    out = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        wave = 2 * math.pi / frequency
        smooth = (length / wave - low) / (high - low)
        if wave < length / high:
            out.append(1.0)
        elif wave > length / low:
            out.append(factor)
        else:
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def test_llama31_is_read_as_its_folder(tmp_path):
    """The file is the parity fixture, whose logits are transformers', with its scaling as a
    tensor."""
    factors = published_factors(10_000.0, 8, 8.0, 1.0, 4.0, 16)
    assert factors[0] == pytest.approx(1 / ((1 - 0.515493) / 8 + 0.515493), rel=1e-5)  # (16 / 2 pi - 1) / 3
    fixture = FIXTURE.with_name("llama31")
    write(tmp_path / "m.gguf", fixture=fixture, more=lambda w: w.add_tensor("rope_freqs.weight", factors))
    found, (family, cfg) = gguf.open_gguf(tmp_path / "m.gguf"), folder.read_config(fixture)
    assert cfg.rope_scaling == RopeScaling("llama3", 8.0, 16)
    assert (found.family, dataclasses.replace(found.config, norm_eps=cfg.norm_eps)) == (family, cfg)


# (theta, head_dim, factor, low, high, length): 3.1 8B, 3.2 1B, settings of nobody, and a ramp that
# no frequency is on.
FACTORS = [
    (5e5, 128, 8.0, 1.0, 4.0, 8192),
    (5e5, 64, 32.0, 1.0, 4.0, 8192),
    (500.0, 64, 5.3, 0.7, 2.1, 24),
    (1e4, 8, 8.0, 1.0, 4.0, 40),
]


@pytest.mark.parametrize("settings", FACTORS, ids=str)
def test_factors_of_frequencies_are_found_again(settings):
    theta, head_dim, factor, *_ = settings
    factors = published_factors(*settings)
    rope = gguf_config.from_factors(factors, head_dim, theta)
    _, scaling = rope_from_hf({"rope_scaling": rope, "rope_theta": theta, "max_position_embeddings": 1})
    plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    np.testing.assert_allclose(position.frequencies(head_dim, theta, scaling), plain / factors, rtol=3e-6)
    if settings[3:] == (1.0, 4.0, 8192):
        assert scaling == RopeScaling("llama3", factor, 8192)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        (
            "yarn",
            {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 3.0},
            RopeScaling("yarn", 4.0, 16, beta_fast=3.0),
        ),
        ("yarn without a length", {"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, 64)),
        ("linear", {"type": "linear", "factor": 4.0}, RopeScaling("linear", 4.0, 64)),
        ("a factor alone", {"factor": 4.0}, RopeScaling("linear", 4.0, 64)),
        ("none", {"type": "none", "factor": 4.0, "finetuned": False}, RopeScaling()),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_scaling_is_read(name, settings, expected, tmp_path):
    write(tmp_path / "m.gguf", more=functools.partial(add, {f"rope.scaling.{k}": v for k, v in settings.items()}))
    assert gguf.open_gguf(tmp_path / "m.gguf").config.rope_scaling == expected


def add(keys: dict, writer: GGUFWriter, architecture: str = "llama") -> None:
    """Adds keys of the architecture, by the type of their value."""
    kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    for name, value in keys.items():
        if name.startswith("rope.dimension"):
            del writer.kv_data[0][f"{architecture}.{name}"]
        getattr(writer, kinds[type(value)])(f"{architecture}.{name}", value)


REFUSED = [
    ({"rope.scaling.attn_factor": 0.6}, r"llama.rope.scaling.attn_factor = 0.6\d* is not supported; supported: 1"),
    (
        {"rope.scaling.type": "longrope"},
        "rope.scaling.type = 'longrope' is not supported; supported: none, linear, yarn",
    ),
    ({"rope.dimension_count": 4}, "rope.dimension_count = 4 is not supported; supported: the heads' 8"),
    ({"attention.value_length": 4}, "attention.value_length = 4"),
    ({"attention.sliding_window": 8}, "attention.sliding_window = 8 is not supported; supported: 0"),
    ({"logit_scale": 2.0}, "logit_scale = 2.0"),
    ({"expert_count": 2}, "expert_count = 2"),
    ({"attention.temperature_scale": 0.5}, "attention.temperature_scale = 0.5 is not supported; supported: files with"),
    ({"vocab_size": "many"}, "vocab_size = 'many'; allowed: numbers above 0"),
]


@pytest.mark.parametrize(("keys", "said"), REFUSED, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_what_would_change_the_logits_is_refused(keys, said, tmp_path):
    write(tmp_path / "m.gguf", more=functools.partial(add, keys))
    with pytest.raises(ValueError, match=said) as error:
        gguf.open_gguf(tmp_path / "m.gguf")
    assert str(tmp_path) in str(error.value)


def test_keys_that_nobody_knows_are_named(tmp_path, caplog):
    keys = {"logit_scale": 1.0, "rope.scaling.finetuned": True, "a.key": 3, "attention.causal": True}
    write(tmp_path / "m.gguf", more=functools.partial(add, keys))
    gguf.open_gguf(tmp_path / "m.gguf")
    assert [r.getMessage() for r in caplog.records] == ["not used: llama.a.key"]


@pytest.mark.parametrize(
    ("architecture", "name"), [("qwen2", "rope_freqs"), ("llama", "rope_factors_long"), ("llama", "blk.0.ffn_gate.1")]
)
def test_a_tensor_without_a_place_is_refused(architecture, name, tmp_path):
    more = lambda w: w.add_tensor(f"{name}.weight", np.ones(4, np.float32))  # noqa: E731
    write(tmp_path / "m.gguf", architecture=architecture, more=more)
    with pytest.raises(ValueError, match=f"{name}.weight has no place in this model"):
        gguf.open_gguf(tmp_path / "m.gguf")


def drop(name: str, writer: GGUFWriter) -> None:
    del writer.kv_data[0][name]


def merge_without_a_token(writer: GGUFWriter) -> None:
    writer.kv_data[0]["tokenizer.ggml.merges"].value = ["a b", "b c"]


def experts_by_their_old_names(writer: GGUFWriter) -> None:
    for e in range(2):
        writer.add_tensor(f"blk.0.ffn_gate.{e}.weight", np.zeros((48, 32), np.float32))


DAMAGED = [
    (merge_without_a_token, "merges has 'b c', which does not join two tokens"),
    (experts_by_their_old_names, "blk.0.ffn_gate.0.weight, blk.0.ffn_gate.1.weight has no place in this model"),
    (functools.partial(drop, "llama.block_count"), "llama.block_count is missing"),
    (functools.partial(drop, "llama.embedding_length"), "llama.embedding_length is missing"),
    (functools.partial(drop, "general.architecture"), "architecture None is not supported"),
    (functools.partial(drop, "tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is missing"),
    (functools.partial(drop, "tokenizer.ggml.token_type"), "tokenizer.ggml.token_type is missing"),
]


@pytest.mark.parametrize(("harm", "said"), DAMAGED, ids=lambda x: x if isinstance(x, str) else "")
def test_metadata_that_does_not_fit_is_one_line(harm, said, tmp_path):
    write(tmp_path / "m.gguf", more=harm)
    with pytest.raises(ValueError, match=said) as error:
        gguf.open_gguf(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)


def test_one_value_a_layer_is_read_where_all_are_equal(tmp_path):
    def per_layer(writer: GGUFWriter, kv_heads=(2, 2)) -> None:
        drop("llama.attention.head_count_kv", writer)
        writer.add_head_count_kv(list(kv_heads))

    write(tmp_path / "m.gguf", more=per_layer)
    assert gguf.open_gguf(tmp_path / "m.gguf").config.num_kv_heads == 2
    write(tmp_path / "m.gguf", more=functools.partial(per_layer, kv_heads=(2, 1)))
    with pytest.raises(ValueError, match=r"head_count_kv = \[2, 1\] differs between layers"):
        gguf.open_gguf(tmp_path / "m.gguf")


def test_an_architecture_that_is_read_in_another_form(tmp_path):
    finish(open_writer(tmp_path / "m.gguf", architecture="gemma2"))
    with pytest.raises(ValueError, match=r"'gemma2' is not supported in this form \(its .* is: Gemma2ForCausalLM\)"):
        gguf.open_gguf(tmp_path / "m.gguf")


def test_factors_of_another_form_are_refused(tmp_path):
    for factors in ([1, 2, 3, 2], [1, 1, 0.5, 1], [1, 2], [1, 2, 4, 8]):
        with pytest.raises(ValueError, match=r"rope_freqs.weight holds factors of another form than Llama 3.1's"):
            gguf_config.from_factors(np.array(factors, np.float32), 8, 10_000.0)


# ------------------------------------------ K-quants, which the gguf package reads and cannot write


def random_blocks(kind: str, rows: int) -> np.ndarray:
    """(rows, 2 blocks' bytes) of any content, but for the factors of a whole block, which are
    finite numbers."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = np.random.default_rng(0).integers(0, 256, (rows * 2, size)).astype(np.uint8)
    factors = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}
    begin, end = factors[kind]
    numbers = np.random.default_rng(1).uniform(0.01, 0.02, (rows * 2, (end - begin) // 2)).astype(np.float16)
    blocks[:, begin:end] = numbers.view(np.uint8)
    return blocks.reshape(rows, -1)


def float16(block: bytes, at: int) -> float:
    return float(np.frombuffer(block, np.float16, 1, at)[0])


def q4_k(block: bytes) -> list[float]:
    """Computes dequantize_row_q4_K of llama.cpp's ggml-quants.c, a value at a time."""
    d, least, scales, q, out = float16(block, 0), float16(block, 2), block[4:16], block[16:], []
    for i in range(8):
        if i < 4:
            scale, offset = scales[i] & 63, scales[i + 4] & 63
        else:
            scale = scales[i + 4] & 15 | scales[i - 4] >> 6 << 4
            offset = scales[i + 4] >> 4 | scales[i] >> 6 << 4
        nibbles = (x >> 4 if i % 2 else x & 15 for x in q[i // 2 * 32 : i // 2 * 32 + 32])
        out += [d * scale * x - least * offset for x in nibbles]
    return out


def q6_k(block: bytes) -> list[float]:
    """Computes dequantize_row_q6_K of llama.cpp's ggml-quants.c, a value at a time."""
    scales, d, out = np.frombuffer(block, np.int8, 16, 192), float16(block, 208), []
    for half in range(2):
        low, high = block[half * 64 : half * 64 + 64], block[128 + half * 32 : 160 + half * 32]
        for quarter in range(4):
            for i in range(32):
                x = low[i + quarter % 2 * 32] >> quarter // 2 * 4 & 15 | (high[i] >> 2 * quarter & 3) << 4
                out.append(d * int(scales[half * 8 + quarter * 2 + i // 16]) * (x - 32))
    return out


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants(kind, tmp_path):
    blocks, used = random_blocks(kind, rows=8), GGMLQuantizationType[kind]
    writer = open_writer(tmp_path / "m.gguf")
    for name in ("token_embd", "blk.0.ffn_up", "blk.0.attn_q"):
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=used)
    finish(writer)
    source = gguf.open_gguf(tmp_path / "m.gguf").source
    assert source["model.embed_tokens.weight"].shape == (8, 512)
    found = source["model.layers.0.mlp.up_proj.weight"].read()
    np.testing.assert_array_equal(source["model.embed_tokens.weight"].read(), found)
    np.testing.assert_array_equal(source["model.layers.0.self_attn.q_proj.weight"].read(), gguf.unpermute(found, 4))
    by_hand = {"Q4_K": q4_k, "Q6_K": q6_k}.get(kind)
    expected = dequantize(blocks, used)
    if by_hand:
        size = GGML_QUANT_SIZES[used][1]
        values = [by_hand(b.tobytes()) for b in blocks.reshape(-1, size)]
        expected = np.array(values, np.float32).reshape(8, 512)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- tokenizers


def sentencepiece_tokenizer(processor):
    """What llama.cpp's converter writes of a SentencePiece model."""

    def kind(i: int) -> int:
        marks = {2: processor.is_unknown(i), 3: processor.is_control(i), 6: processor.is_byte(i)}
        return next((number for number, marked in marks.items() if marked), 1)

    def write(writer: GGUFWriter) -> None:
        ids = range(processor.vocab_size())
        writer.add_tokenizer_model("llama")
        writer.add_token_list([processor.id_to_piece(i) for i in ids])
        writer.add_token_scores([processor.get_score(i) for i in ids])
        writer.add_token_types([kind(i) for i in ids])

    return write


def test_a_sentencepiece_tokenizer_comes_back(tmp_path):
    """The tokenizer is Llama 2's kind. It gives the ids of the SentencePiece model that the file
    was made from."""
    model, texts = io.BytesIO(), ["the people of the united states establish justice", "welfare and liberty, 1787"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    finish(open_writer(tmp_path / "m.gguf", tokenizer=sentencepiece_tokenizer(theirs)))
    ours = gguf.open_gguf(tmp_path / "m.gguf").tokenizer
    for text in [*texts, "  two  spaces ", "naïve café 🤗", "line\nbreak", "</s> spelled out"]:
        ours.encode_special_tokens = True
        assert ours.encode(text).ids == theirs.encode(text), text
        assert ours.decode(theirs.encode(text)) == text
    assert ours.token_to_id("<s>") == theirs.bos_id()


def test_the_tokenizer_comes_back(tmp_path):
    write(tmp_path / "m.gguf", GGMLQuantizationType.F32)
    tokenizer = gguf.open_gguf(tmp_path / "m.gguf").tokenizer
    assert tokenizer.get_vocab_size() == 96
    assert tokenizer.encode("xab").tokens == ["x", "ab"]
    assert tokenizer.decode(tokenizer.encode("cab").ids) == "cab"


@pytest.mark.slow
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
    write(tmp_path / "n.gguf", GGMLQuantizationType.F32, tokenizer=functools.partial(byte_level, pre="unheard-of"))
    with pytest.raises(ValueError, match="tokenizer.ggml.pre = 'unheard-of'"):
        gguf.open_gguf(tmp_path / "n.gguf")
    finish(open_writer(tmp_path / "o.gguf", tokenizer=functools.partial(byte_level, model="rwkv")))
    with pytest.raises(ValueError, match="tokenizer kind 'rwkv' is not supported; supported: 'gpt2'"):
        gguf.open_gguf(tmp_path / "o.gguf")
