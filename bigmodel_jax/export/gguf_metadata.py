"""Makes the metadata of a GGUF file: a model's sizes by llama.cpp's keys, and its tokenizer.

The metadata is read back with this package's reader. A model or a tokenizer that llama.cpp would
misread is refused.
"""

import json
import logging
from pathlib import Path
from typing import Any

from bigmodel_jax.data.tokenizers import sentencepiece_model
from bigmodel_jax.data.tokenizers.gguf_tokenizer import (
    CONTROL,
    NORMAL,
    PRE,
    PREFIX,
    UNUSED,
    USER_DEFINED,
    from_gguf_metadata,
    words_of,
)
from bigmodel_jax.data.tokenizers.sentencepiece_model import SentencePieceModel
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

log = logging.getLogger("bigmodel_jax")

KINDS = "byte-level BPE and SentencePiece's BPE"
# Texts that a lost normalization, split or space in front would give other tokens.
TEXTS = ("Two words", "  three  spaces ", "\n 1234\t", "e\u0301 \ufb01 \u00e9 日本", "don't <x>")


def sizes(hf: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The architecture's keys for the sizes in a config.json.

    llama.cpp reads some keys as float32, so their values are floats here.
    """
    head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    found = {
        "vocab_size": hf["vocab_size"],
        "context_length": hf["max_position_embeddings"],
        "embedding_length": hf["hidden_size"],
        "block_count": hf["num_hidden_layers"],
        "feed_forward_length": hf["intermediate_size"],
        "attention.head_count": hf["num_attention_heads"],
        "attention.head_count_kv": hf["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(hf["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(hf["rope_theta"]),
    }
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": float(scaling["factor"])}
    if scaling.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        found |= {f"rope.scaling.yarn_{name}": float(scaling[name]) for name in ("beta_fast", "beta_slow")}
    return {f"{architecture}.{name}": value for name, value in found.items()}


# ---------------------------------------------------------------- the tokenizer


def vocabulary(tokenizer: Tokenizer, size: int, template: str, path: Path) -> dict[str, Any]:
    """The keys tokenizer.ggml.* of a tokenizer.

    size: the rows of the embedding table. Rows without a token are marked as unused. template: the
    chat template, or "". path: the tokenizer's file, for messages. Raises a ValueError of one line
    for a tokenizer that llama.cpp has no form of.
    """
    if isinstance(tokenizer.model, SentencePieceModel):
        found = _of_proto(tokenizer.model, path)
    else:
        said = json.loads(tokenizer.model.to_str())
        found = _of_bpe(said, path)
    tokens, types = _tokens(tokenizer, found.pop("types"), size, path)
    found |= {"tokens": tokens, "token_type": types, **_special(tokenizer)}
    if "scores" in found:
        found["scores"] = [found["scores"].get(token, 0.0) for token in tokens]
    keys = {PREFIX + name: value for name, value in found.items()}
    if template:
        keys["tokenizer.chat_template"] = template
    _check_same(tokenizer, keys, path)
    return keys


def _tokens(tokenizer: Tokenizer, types: dict[str, int], size: int, path: Path) -> tuple[list[str], list[int]]:
    if tokenizer.vocab_size > size:
        raise ValueError(f"export: gguf: {path} has {tokenizer.vocab_size} tokens, and the model's table {size} rows")
    names = [tokenizer.model.id_to_token(i) if i < tokenizer.vocab_size else None for i in range(size)]
    # llama.cpp's converter gives rows without a token these names.
    tokens = [f"[PAD{i}]" if name is None else name for i, name in enumerate(names)]
    added = {t.content: CONTROL if t.special else USER_DEFINED for t in _added(tokenizer).values()}
    kinds = [UNUSED if name is None else types.get(name, added.get(name, NORMAL)) for name in names]
    return tokens, kinds


def _added(tokenizer: Tokenizer) -> dict[int, Any]:
    return tokenizer.model.get_added_tokens_decoder()


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of the special tokens, and whether the start token begins every text."""
    special, model = tokenizer.special, tokenizer.model
    if not special:  # the tokenizer was trained here, where every text begins with its start token
        return {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.separator, "add_bos_token": True}
    ids = {"bos": special.token("bos_token"), "eos": special.token("eos_token")}
    ids |= {"unknown": special.token("unk_token"), "padding": special.token("pad_token")}
    found = {f"{kind}_token_id": model.token_to_id(name) for kind, name in ids.items() if name}
    ends = special.ids("eos_token_id")
    found["eos_token_id"] = ends[0] if ends else found.get("eos_token_id", tokenizer.separator)
    # llama.cpp also stops at the tokens that end a turn and a message, and has no key for a fourth.
    found |= {f"{kind}_token_id": i for kind, i in zip(("eot", "eom"), ends[1:], strict=False)}
    if lost := ends[3:]:
        log.warning("llama.cpp will not stop at the tokens %s, at which this model stops", lost)
    adds = special.names.get("add_bos_token")
    starts = tokenizer.start == found.get("bos_token_id") != tokenizer.separator
    return {name: i for name, i in found.items() if i is not None} | {
        "add_bos_token": bool(starts if adds is None else adds)
    }


def _of_bpe(said: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a tokenizer.json with a BPE model.

    The key "types" holds the types of all tokens but added ones.
    """
    model = said["model"]
    if model.get("type") != "BPE":
        raise ValueError(f"export: gguf: {path} holds a {model.get('type')} model; known: {KINDS}")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    if "ByteLevel" in json.dumps(said["decoder"]):
        return {"model": "gpt2", "pre": _pre(said, path), "merges": merges, "types": {}}
    # llama.cpp's SentencePiece form has no merges. A token's score orders the merges instead: an
    # earlier merge has a higher score.
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), -float(rank))
    lowest = -float(len(merges))
    scores = {token: ranks.get(token, lowest) for token in model["vocab"]}
    # llama.cpp's token types: 6 marks a single byte, and 2 marks the unknown token.
    types = {token: 6 for token in model["vocab"] if token.startswith("<0x") and model.get("byte_fallback")}
    types[model["unk_token"] or "<unk>"] = 2
    prepends = json.dumps(said["normalizer"]), (said["pre_tokenizer"] or {}).get("prepend_scheme", "never")
    prefix = "Prepend" in prepends[0] or prepends[1] != "never"
    return {"model": "llama", "scores": scores, "types": types, "add_space_prefix": prefix}


def _of_proto(model: SentencePieceModel, path: Path) -> dict[str, Any]:
    """The keys of a SentencePiece model."""
    proto = sentencepiece_model.parse(model.proto)
    spec = proto.normalizer_spec
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE or spec.precompiled_charsmap:
        raise ValueError(f"export: gguf: {path} holds a SentencePiece model that is no plain BPE; known: {KINDS}")
    return {
        "model": "llama",
        "scores": {p.piece: float(p.score) for p in proto.pieces},
        "types": {p.piece: int(p.type) for p in proto.pieces},
        "add_space_prefix": bool(spec.add_dummy_prefix),
        "remove_extra_whitespaces": bool(spec.remove_extra_whitespaces),
    }


def _pre(said: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for the way in which the tokenizer splits text into words."""
    own = _cut(said)
    for name, pre in PRE.items():
        if _cut(json.loads(words_of(pre, {}, []).to_str())) == own:
            return name
    raise ValueError(
        f"export: gguf: {path} splits words like none of the tokenizers that llama.cpp knows: {', '.join(PRE)}"
    )


def _cut(said: dict[str, Any]) -> tuple[Any, ...]:
    """The settings that decide how a byte-level tokenizer splits a text.

    Settings about offsets are left out.
    """
    steps = said["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    return steps, said["normalizer"], bool(said["model"]["ignore_merges"])


def _check_same(tokenizer: Tokenizer, keys: dict[str, Any], path: Path) -> None:
    """Raises ValueError where the keys read back as another tokenizer than the one they were made
    from.
    """
    again = from_gguf_metadata(keys, path)
    if isinstance(tokenizer.model, SentencePieceModel):
        same = [again.id_to_token(i) == tokenizer.model.id_to_token(i) for i in range(tokenizer.vocab_size)]
    else:
        ours, theirs = (json.loads(model.to_str())["model"] for model in (tokenizer.model, again))
        pairs = [[tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in x["merges"]] for x in (ours, theirs)]
        vocab = {token: i for token, i in theirs["vocab"].items() if i < tokenizer.vocab_size}
        same = [pairs[0] == pairs[1], all(vocab.get(token) == i for token, i in ours["vocab"].items())]
    if not all(same):
        raise ValueError(f"export: gguf: {path} has merges that llama.cpp's form of it would not keep")
    if keys[PREFIX + "model"] == "llama":  # `_pre` compares the settings of a byte-level tokenizer
        _check_texts(tokenizer, again, path)


def _check_texts(tokenizer: Tokenizer, again: Any, path: Path) -> None:
    """Raises ValueError where a text has other tokens in llama.cpp's form of a tokenizer."""
    again.encode_special_tokens = True  # as `Tokenizer` sets it
    added = {token.content for token in _added(tokenizer).values()}
    texts = [*TEXTS, *(name.replace("▁", " ") for name in tokenizer.model.get_vocab() if name not in added)]
    both = (model.encode_batch_fast(texts, add_special_tokens=False) for model in (tokenizer.model, again))
    wrong = [text for text, a, b in zip(texts, *both, strict=True) if a.ids != b.ids]
    if inside := next((text for text in wrong if not text.startswith(" ")), None):
        raise ValueError(f"export: gguf: {path} gives {inside!r} other tokens than llama.cpp's form of it would")
    if wrong:  # llama.cpp puts its space before such a text, too, which `Metaspace` of `tokenizers` does not
        log.warning("%s gives texts that begin with a space other tokens than llama.cpp, such as %r", path, wrong[0])
