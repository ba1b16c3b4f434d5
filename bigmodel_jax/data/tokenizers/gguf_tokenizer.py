"""Reads the tokenizer inside a GGUF file, from the keys tokenizer.ggml.*."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_jax.data.tokenizers import sentencepiece_model
from bigmodel_jax.data.tokenizers.byte_level_files import WORDS, byte_level, split
from bigmodel_jax.data.tokenizers.sentencepiece_model import SentencePieceModel

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # values of tokenizer.ggml.token_type
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEFAULT_SPLITS = (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")


class Pre(NamedTuple):
    """The pre-tokenization of a kind of tokenizer.

    - splits: patterns that divide a text into words, applied in order; (): as GPT-2 divides it.
    - digits: each digit is a word.
    - nfc: characters are composed first.
    - whole: a word that is itself a token becomes that token without merges.
    """

    splits: tuple[str, ...] = ()
    digits: bool = False
    nfc: bool = False
    whole: bool = False


LLAMA3 = Pre((WORDS % "1,3",), whole=True)
PRE = {
    "default": Pre(DEFAULT_SPLITS),
    "gpt-2": Pre(),
    "phi-2": Pre(),
    "smollm": Pre(digits=True),
    "starcoder": Pre(digits=True),
    "refact": Pre(digits=True),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "dbrx": LLAMA3._replace(whole=False),
    "smaug-bpe": LLAMA3._replace(whole=False),
    "qwen2": Pre((WORDS % "1",), nfc=True),
    "deepseek-r1-qwen": Pre((WORDS % "1",), nfc=True),
    "tekken": Pre((TEKKEN_WORDS,), whole=True),
}
"""Pre-tokenization by tokenizer.ggml.pre, as in llama.cpp and the models' tokenizer.json; a missing
key is `default`."""


def from_gguf_metadata(metadata: dict, path: Path) -> Any:
    """Return a GGUF file's tokenizer.

    Raises ValueError for a kind that is neither byte-level BPE nor SentencePiece's BPE.
    """
    kind = metadata.get(f"{PREFIX}model")
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece}
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(
            f"{path}: tokenizer kind {kind!r} is not supported; supported: 'gpt2' (byte-level BPE), 'llama' (SentencePiece)"
        )
    try:
        return kinds[kind](metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _list(metadata: dict, name: str, kind: Callable[[Any], bool], length: int | None = None) -> list:
    """Return the list under a key.

    Raises ValueError where it is missing, has another length, or holds a value that is not of
    `kind`.
    """
    found = metadata.get(PREFIX + name)
    if not isinstance(found, list) or not all(map(kind, found)):
        what = "is absent" if found is None else "is no list of the right kind"
        raise ValueError(f"{PREFIX}{name} {what}, so its tokenizer cannot be read")
    if length not in (None, len(found)):
        raise ValueError(f"{PREFIX}{name} has {len(found)} values for {length} tokens")
    return found


def _tokens(metadata: dict) -> list[str]:
    tokens = _list(metadata, "tokens", lambda x: isinstance(x, str))
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise ValueError(f"{PREFIX}tokens has {twice!r} twice")
    return tokens


def _types(metadata: dict, length: int) -> list[int]:
    return _list(metadata, "token_type", lambda x: type(x) is int and NORMAL <= x <= BYTE, length)


def words_of(pre: Pre, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return a byte-level BPE with the pre-tokenization `pre`."""
    from tokenizers import normalizers, pre_tokenizers

    first = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else [split(p) for p in pre.splits]
    model = byte_level(vocab, merges, first, words=not pre.splits, ignore_merges=pre.whole)
    if pre.nfc:
        model.normalizer = normalizers.NFC()
    return model


def _byte_level(metadata: dict) -> Any:
    from tokenizers import AddedToken

    name = metadata.get(f"{PREFIX}pre", "default")
    if not isinstance(name, str) or name not in PRE:
        raise ValueError(f"{PREFIX}pre = {name!r} is not supported; supported: {', '.join(PRE)}")
    pre, tokens = PRE[name], _tokens(metadata)
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", lambda x: isinstance(x, str))]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    if wrong:
        raise ValueError(f"{PREFIX}merges: each entry must hold two tokens, unlike {' '.join(wrong)[:60]!r}")
    model = words_of(pre, {token: i for i, token in enumerate(tokens)}, merges)
    types = _types(metadata, len(tokens))
    # Only control tokens are special, because people may write user-defined tokens.
    added = [(t, kind == CONTROL) for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    model.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added])
    return model


def _sentencepiece(metadata: dict) -> Any:
    """Return Llama 2's and Mistral's tokenizer, rebuilt as a SentencePiece model."""
    return sentencepiece_model.convert(model := _model(metadata)) or SentencePieceModel(model)


def _model(metadata: dict) -> bytes:
    """Rebuild the SentencePiece model from the file's tokens, scores and types."""
    tokens = _tokens(metadata)
    scores = _list(metadata, "scores", lambda x: isinstance(x, int | float), len(tokens))
    types = _types(metadata, len(tokens))
    if UNKNOWN not in types:
        raise ValueError(f"{PREFIX}token_type marks no unknown token, which SentencePiece always has")
    # An empty protocol buffer has every field at its default.
    proto = sentencepiece_model.parse(b"")
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = BYTE in types
    proto.trainer_spec.unk_id = types.index(UNKNOWN)
    proto.trainer_spec.unk_piece = tokens[types.index(UNKNOWN)]
    spec = proto.normalizer_spec
    spec.name, spec.escape_whitespaces = "identity", True
    # Missing keys have llama.cpp's defaults.
    spec.add_dummy_prefix = bool(metadata.get(f"{PREFIX}add_space_prefix", True))
    spec.remove_extra_whitespaces = bool(metadata.get(f"{PREFIX}remove_extra_whitespaces", False))
    if f"{PREFIX}precompiled_charsmap" in metadata:
        spec.precompiled_charsmap = bytes(_list(metadata, "precompiled_charsmap", lambda x: isinstance(x, int)))
    return proto.SerializeToString()
