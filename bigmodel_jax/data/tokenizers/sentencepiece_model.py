"""SentencePiece models, run by `sentencepiece`, or by `tokenizers` where that gives the same ids.

`tokenizers` cannot represent most of what a model may hold. Its character map matches whole
graphemes, while SentencePiece matches the longest sequence. It also has no user-defined pieces, no
suffix for spaces, and no word models.
"""

import base64
import bisect
import functools
import importlib.util
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

SAVED = b'{"sentencepiece": '
"The beginning of a file that `SentencePieceModel.save` wrote."


class Added(NamedTuple):
    """An added token, for which a text is searched.

    A special token is found only where control tokens are read.

    lstrip, rstrip: it includes the spaces before and after it. single_word: it does not match
    inside a word.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def pattern(self) -> str:
        name = re.escape(self.content)
        name = rf"(?<!\w){name}(?!\w)" if self.single_word else name
        return f"({r'\s*' * self.lstrip}{name}{r'\s*' * self.rstrip})"


class Encoded(NamedTuple):
    """The fields of `tokenizers.Encoding` that are used. Offsets are (start, end) in characters."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


class SentencePieceModel:
    """A SentencePiece model with the methods of `tokenizers.Tokenizer` that the package uses.

    - added: tokens besides the model's own.
    - closing: ids after a text that an encoder reads.
    - file, tokenizer_class: names of the model's file and of its class in transformers, for
      exports.
    """

    post_processor = None  # the files beside the model say which tokens surround a text

    def __init__(
        self,
        model: bytes,
        *,
        added: tuple[Added, ...] = (),
        closing: tuple[int, ...] = (),
        file: str = "tokenizer.model",
        tokenizer_class: str = "LlamaTokenizer",
    ):
        self.processor = read_model(model)
        self.proto, self.added, self.closing, self.file, self.tokenizer_class = (
            model,
            added,
            closing,
            file,
            tokenizer_class,
        )
        size = self.processor.vocab_size()
        self._own = [self.processor.id_to_piece(i) for i in range(size)]
        control = [
            Added(piece, i)
            for i, piece in enumerate(self._own)
            if self.processor.is_control(i) or self.processor.is_unknown(i)
        ]
        self._tokens = {token.id: token for token in (*control, *added)}
        self._names = {i: piece for i, piece in enumerate(self._own)} | {t.id: t.content for t in added}
        self._ids = {name: i for i, name in self._names.items()}
        self.encode_special_tokens = False
        self._length: int | None = None

    @property
    def decoder(self) -> str:
        """U+2581 if a text's pieces spell exactly that text, else "". `token_bytes` reads it."""
        spec = parse(self.proto).normalizer_spec
        lossless = not spec.precompiled_charsmap and not spec.remove_extra_whitespaces
        return "▁" if lossless and any(map(self.processor.is_byte, range(len(self._own)))) else ""

    @property
    def unk_token(self) -> str:
        return self.processor.id_to_piece(self.processor.unk_id())

    def get_vocab_size(self) -> int:
        return len(self._names)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def id_to_token(self, token: int) -> str | None:
        return self._names.get(token)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        from tokenizers import AddedToken

        return {i: AddedToken(t.content, special=t.special, normalized=False) for i, t in self._tokens.items()}

    def enable_truncation(self, length: int) -> None:
        self._length = length

    def no_truncation(self) -> None:
        self._length = None

    def no_padding(self) -> None:
        pass

    @functools.cache  # noqa: B019 - two entries, and a model lives as long as its process
    def _searched(self, special: bool) -> tuple[list[Added], re.Pattern | None]:
        """Return the tokens to search for, longest first, and a pattern with one group for each."""
        # A regular expression takes the first alternative that matches, not the longest.
        found = sorted((t for t in self._tokens.values() if special or not t.special), key=lambda t: -len(t.content))
        return found, re.compile("|".join(t.pattern for t in found)) if found else None

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        searched, pattern = self._searched(not self.encode_special_tokens)
        parts, last = [], 0
        for match in pattern.finditer(text) if pattern else ():
            token = searched[match.lastindex - 1]
            parts += [self._encode_plain(text, last, match.start())]
            parts += [Encoded([token.id], [token.content], [match.span()])]
            last = match.end()
        parts.append(self._encode_plain(text, last, len(text)))
        out = Encoded(*(list(itertools.chain(*lists)) for lists in zip(*parts, strict=True)))
        closing = self.closing if add_special_tokens else ()
        # The closing ids count towards the length, so truncation never removes them.
        out = Encoded(*(x[: max(0, self._length - len(closing))] if self._length is not None else x for x in out))
        end = [(len(text), len(text))] * len(closing)
        return Encoded(out.ids + list(closing), out.tokens + [self._names[i] for i in closing], out.offsets + end)

    def _encode_plain(self, text: str, start: int, end: int) -> Encoded:
        pieces = self.processor.encode(text[start:end], return_type="proto").pieces
        # SentencePiece counts bytes. A byte position belongs to the character whose bytes it lies
        # in.
        ends = list(itertools.accumulate(len(c.encode()) for c in text[start:end]))
        offsets = [
            (start + bisect.bisect_right(ends, p.begin), start + bisect.bisect_left(ends, p.end) + 1) for p in pieces
        ]
        offsets = [(a, min(b, end) if p.end > p.begin else a) for (a, b), p in zip(offsets, pieces, strict=True)]
        return Encoded([p.id for p in pieces], [self._names[p.id] for p in pieces], offsets)

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[Encoded]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool = True) -> list[Encoded]:
        if add_special_tokens or self._searched(not self.encode_special_tokens)[0]:
            return self.encode_batch(texts, add_special_tokens)
        return [Encoded(ids, [], []) for ids in self.processor.encode(texts, num_threads=os.cpu_count() or 1)]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        out = []
        for own, group in itertools.groupby(ids, lambda i: i < len(self._own) and i not in self._tokens):
            found = list(group)
            names = [] if own else [self._tokens[i] for i in found]
            shown = [t.content for t in names if not (skip_special_tokens and t.special)]
            out.append(self.processor.decode(found) if own else "".join(shown))
        return "".join(out)

    def to_str(self) -> str:
        """Return the content of the file that `save` writes: JSON with the model as base64."""
        about = {
            "sentencepiece": base64.b64encode(self.proto).decode(),
            "added": self.added,
            "closing": self.closing,
            "file": self.file,
            "tokenizer_class": self.tokenizer_class,
        }
        return json.dumps(about)

    def save(self, path: str) -> None:
        """Write one JSON file, which `load` reads."""
        Path(path).write_text(self.to_str())

    def export(self, folder: Path) -> dict[str, Any]:
        """Write the model's file. Return entries of transformers' tokenizer_config.json."""
        (folder / self.file).write_bytes(self.proto)
        decoder = {t.id: {"content": t.content, "special": t.special} for t in self.added}
        return {"tokenizer_class": self.tokenizer_class, "added_tokens_decoder": decoder}


def load(path: Path) -> SentencePieceModel:
    """Read a file that `SentencePieceModel.save` wrote."""
    about = json.loads(path.read_bytes())
    model = base64.b64decode(about.pop("sentencepiece"))
    added, closing = tuple(Added(*token) for token in about.pop("added")), tuple(about.pop("closing"))
    return SentencePieceModel(model, added=added, closing=closing, **about)


def read_model(model: bytes) -> Any:
    """Return a SentencePieceProcessor. Raises ValueError for bytes that are no model."""
    _require()
    from sentencepiece import SentencePieceProcessor

    if not model:
        raise ValueError("not a SentencePiece model (it is empty)")
    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"not a SentencePiece model ({' '.join(str(error).split())[:100]})") from None


def _require() -> None:
    if importlib.util.find_spec("sentencepiece") is None:
        raise ValueError("SentencePiece models need the package sentencepiece: uv sync --extra pretrained")


def parse(model: bytes) -> Any:
    """Return the model's protocol buffer: pieces, training and normalization settings."""
    _require()
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    try:
        return ModelProto.FromString(model)
    except DecodeError as error:
        raise ValueError(f"not a SentencePiece model ({error})") from None


# ---------------------------------------------------------------- as a model of `tokenizers`


def convert(model: bytes) -> Any:
    """Return the tokenizer of Llama 2 and Mistral as a `tokenizers.Tokenizer`; None for other
    kinds.

    These kinds apply BPE to the text without normalization.
    """
    from tokenizers import models

    read_model(model)  # it raises ValueError for an unreadable model
    proto = parse(model)
    kind, spec, pieces = proto.SentencePiece, proto.normalizer_spec, proto.pieces
    special = [p.piece for p in pieces if p.type in (kind.CONTROL, kind.UNKNOWN)]
    exact = (
        proto.trainer_spec.model_type == proto.trainer_spec.BPE
        and not spec.precompiled_charsmap
        and not spec.remove_extra_whitespaces
        and spec.escape_whitespaces
        and not proto.trainer_spec.treat_whitespace_as_suffix
        and not any(p.type in (kind.USER_DEFINED, kind.UNUSED) for p in pieces)
    )
    if not exact:
        return None
    bpe = models.BPE(
        vocab={p.piece: i for i, p in enumerate(pieces)},
        merges=_merges({p.piece: p.score for p in pieces if p.type == kind.NORMAL}),
        unk_token=next(p.piece for p in pieces if p.type == kind.UNKNOWN),
        fuse_unk=True,
        byte_fallback=any(p.type == kind.BYTE for p in pieces),
    )
    return _with_spaces(bpe, special, prefix=spec.add_dummy_prefix)


def _with_spaces(model: Any, control: list[str], *, prefix: bool) -> Any:
    """Return the tokenizer around a model that writes spaces as U+2581.

    `prefix` puts a space in front of each text.
    """
    from tokenizers import Tokenizer, decoders, normalizers

    tokenizer = Tokenizer(model)
    first = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    last = [decoders.Strip(content=" ", left=1, right=0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    tokenizer.add_special_tokens(control)
    return tokenizer


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every merge of two pieces, best score first; SentencePiece stores no merges."""
    order = {piece: i for i, piece in enumerate(scores)}
    out = []
    for piece, score in scores.items():
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        out += [(-score, order[a], order[b], a, b) for a, b in halves if a in scores and b in scores]
    return [(a, b) for *_, a, b in sorted(out)]
