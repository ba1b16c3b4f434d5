"""Reads a Whisper model in CTranslate2's format, in which faster-whisper publishes it.

The tensors get transformers' names.

A folder holds model.bin, config.json and tokenizer.json. model.bin begins with a version, the name
of the model's specification and a revision. Each tensor follows as name, shape, type and bytes.
Other names for some of the tensors come last (CTranslate2's `ModelSpec.save`, version 6). One
matrix holds the projections of queries, keys and values.
"""

import functools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens
from bigmodel_jax.pretrained.names import Source, Tensor

FILE = "model.bin"
VERSIONS = (5, 6)
SPEC = "WhisperSpec"
DTYPES = {0: "float32", 4: "float16"}
MOST_TENSORS, MOST_DIMS = 100_000, 8
HEAD_DIM = 64  # the same in every published Whisper


class Reader:
    """Reads numbers and texts one after another from a file's bytes.

    Raises ValueError where the file ends early.
    """

    def __init__(self, data: memoryview, path: Path):
        self.data, self.path, self.at = data, path, 0

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(kind)))[0]

    def text(self) -> str:
        # CTranslate2 ends each text with a zero byte, which its length includes.
        return bytes(self.bytes(self.number("H"))).rstrip(b"\0").decode("utf-8", "replace")

    def bytes(self, num: int) -> memoryview:
        found = self.data[self.at : self.at + num]
        if len(found) < num:
            raise ValueError(
                f"{self.path}: cut short: {num} bytes are expected at {self.at}, and {len(found)} are there"
            )
        self.at += num
        return found


def is_one(folder: Path) -> bool:
    """Whether a folder holds a CTranslate2 model and no safetensors file."""
    return (folder / FILE).is_file() and not (folder / "model.safetensors").is_file()


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model.bin by CTranslate2's names, mapped from the file.

    Raises a ValueError of one line for a file that is no CTranslate2 Whisper model, or a damaged
    one.
    """
    # The file is mapped, so a tensor's bytes are read from disk only when its values are used.
    reader = Reader(memoryview(np.memmap(path, np.uint8, mode="r")), path)
    version = reader.number("I")
    if version not in VERSIONS:
        raise ValueError(
            f"{path}: no CTranslate2 model of version {' or '.join(map(str, VERSIONS))} (it begins with {version})"
        )
    spec, _, num = reader.text(), reader.number("I"), reader.number("I")
    if spec != SPEC:
        raise ValueError(f"{path}: it is a {spec[:60]}; of CTranslate2's models only {SPEC} is read")
    if num > MOST_TENSORS:
        raise ValueError(f"{path}: damaged: it says that it has {num} tensors")
    # Second names of tensors follow in the file. They are not needed, so they are not read.
    return dict(_tensor(reader) for _ in range(num))


def _tensor(reader: Reader) -> tuple[str, np.ndarray]:
    name, dims = reader.text(), reader.number("B")
    if dims > MOST_DIMS:
        raise ValueError(f"{reader.path}: damaged: {name[:60]!r} has {dims} dimensions")
    shape, kind = tuple(reader.number("I") for _ in range(dims)), reader.number("B")
    raw = reader.bytes(reader.number("I"))
    # Scalars of the specification are integers. Quantised weights are integers too: they are
    # returned empty here, and the check of shapes refuses them.
    if kind not in DTYPES:
        return name, np.zeros(0, np.int8) if dims else np.frombuffer(raw, np.uint8)
    found = np.frombuffer(raw, DTYPES[kind])
    if found.size != np.prod(shape, dtype=int):
        raise ValueError(f"{reader.path}: damaged: {name[:60]!r} of shape {shape} has {found.size} numbers")
    return name, found.reshape(shape)


def open_whisper(folder: Path) -> tuple[dict[str, Any], Source, SpecialTokens]:
    """Returns (config, tensors, special tokens) of a folder in transformers' form. config: the keys
    of transformers' config.json. tensors: unread tensors by transformers' names. special tokens:
    the ids that generation suppresses.
    """
    found = tensors(folder / FILE)
    given = {name: x for name, x in _renamed(found) if x.ndim}
    about = json.loads((folder / "config.json").read_text())
    generation = {
        "suppress_tokens": about.get("suppress_ids"),
        "begin_suppress_tokens": about.get("suppress_ids_begin"),
    }
    special = SpecialTokens({}, {name: ids for name, ids in generation.items() if ids}, {})
    source = {name: Tensor(x.shape, x.dtype.name, functools.partial(np.asarray, x)) for name, x in given.items()}
    return _config(given), source, special


def _config(given: dict[str, np.ndarray]) -> dict[str, Any]:
    """The keys of transformers' config.json. They follow from the tensors' shapes, since the folder
    does not state the sizes.

    English models have one token less, so the ids of their special tokens are one lower.
    """
    vocab, dim = given["model.decoder.embed_tokens.weight"].shape
    depth = {side: 1 + max(_numbers(given, f"model.{side}.layers.")) for side in ("encoder", "decoder")}
    ffn = given["model.encoder.layers.0.fc1.weight"].shape[0]
    # The id of <|endoftext|>. The id of <|startoftranscript|> follows it.
    end = 50_256 if vocab == 51_864 else 50_257
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "vocab_size": vocab,
        "num_mel_bins": given["model.encoder.conv1.weight"].shape[1],
        "d_model": dim,
        "encoder_layers": depth["encoder"],
        "decoder_layers": depth["decoder"],
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), dim // HEAD_DIM),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), ffn),
        "max_source_positions": given["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": given["model.decoder.embed_positions.weight"].shape[0],
        "activation_function": "gelu",
        "decoder_start_token_id": end + 1,
        "eos_token_id": end,
    }


def _numbers(given: dict[str, np.ndarray], prefix: str) -> list[int]:
    return [int(name[len(prefix) :].partition(".")[0]) for name in given if name.startswith(prefix)]


NORMS = {"gamma": "weight", "beta": "bias"}
PARTS = {  # modules of a layer: CTranslate2's name -> transformers' name
    "self_attention/linear_1": "self_attn.out_proj",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "ffn/layer_norm": "final_layer_norm",
}
JOINED = {"self_attention/linear_0": ("self_attn", "qkv"), "attention/linear_1": ("encoder_attn", "kv")}
WHOLE = {
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/weight": "embed_tokens.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
    **{f"conv{n}/{what}": f"conv{n}.{what}" for n in (1, 2) for what in ("weight", "bias")},
}


def _renamed(found: dict[str, np.ndarray]):
    """Yields each tensor with transformers' name.

    An unknown name stays as it is, so that the family's table of names refuses it.
    """
    for name, x in found.items():
        side, _, rest = name.partition("/")
        layer, _, inside = rest.partition("/")
        if rest in WHOLE:
            yield f"model.{side}.{WHOLE[rest]}", x
        elif not layer.startswith("layer_") or layer == "layer_norm":
            # Numbers of the specification get the shape (), and the caller drops tensors of that
            # shape.
            yield name, x if x.ndim > 1 else np.zeros(())
        else:
            yield from _of_layer(f"model.{side}.layers.{layer[6:]}", inside, x)


def _of_layer(ours: str, inside: str, x: np.ndarray):
    """Yields (transformers' name, values) of one tensor of a layer, or of each part of a joined
    one.
    """
    part, _, what = inside.rpartition("/")
    what = NORMS.get(what, what)
    if part in JOINED:
        module, letters = JOINED[part]
        for letter, one in zip(letters, np.split(x, len(letters)), strict=True):
            if (letter, what) != ("k", "bias"):  # zeros: transformers' keys have no bias
                yield f"{ours}.{module}.{letter}_proj.{what}", one
    elif part in PARTS:
        yield f"{ours}.{PARTS[part]}.{what}", x
    else:
        yield f"{ours}.{inside}", x if x.ndim else np.zeros(())
