"""Tokenizers, trained here or read from a file, behind one small class."""

import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data.tokenizers import sentencepiece_model, special_tokens
from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<｜end▁of▁sentence｜>")
"Names of the token between documents; tokenizers trained here use the first."
STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")
"Names of the token before a text, where a published decoder's differs from its separator."
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|return|>")
"Names of the tokens with which chat models end a turn."
TURN_STARTS = ("<|im_start|>",)
"Tokens that some files call bos_token, although they begin a turn and not a text."
MOST_IDS = 1 << 24
LEAST = {
    "bpe": (257, "the bytes and the separator"),
    "wordpiece": (6, "the special tokens and a piece"),
    "unigram": (4, "the special tokens and a piece"),
}
"The smallest vocabulary of each kind that can be trained."


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer: trained on the training split, the 256 bytes themselves, or a tokenizer.json."""

    kind: Literal["bpe", "wordpiece", "unigram", "bytes"] = "bpe"
    "bpe: byte-level, as GPT-2; wordpiece: lower case, as BERT; unigram: as T5; bytes: untrained"
    vocab_size: Count = 4096
    "tokens to learn; bpe: the 256 bytes and the separator included"
    path: str = ""
    "a tokenizer.json to use instead"

    def __post_init__(self):
        least, what = LEAST.get(self.kind, (self.vocab_size, ""))
        if not self.path and self.vocab_size < least:
            raise ValueError(f"data.tokenizer.vocab_size: {self.vocab_size}; at least {least}: {what}")

    def reads(self, root: Path) -> dict[str, str]:
        """As `DataConfig.reads`: tokenizer.json and the special tokens in the files beside it."""
        return {"path": special_tokens.fingerprint(self.path)} if Path(self.path).is_file() else {}


class Tokenizer:
    """Encodes text to ids and decodes ids to text.

    - vocab_size: the highest id plus 1. separator: the id between documents.
    - start: the id that a model reads once before a text.
    - stops: the ids that end a generated text. A model is trained to write the first.
    - control: text -> id of the special tokens, which text written by people must never become.
    """

    def __init__(self, model, special: SpecialTokens = SpecialTokens()):
        self.model = model
        self.special = special
        # A document that contains "<|endoftext|>" must not end there.
        self.model.encode_special_tokens = True
        self.vocab_size: int = num_ids(model)
        ends = [*self._ids(special.token("eos_token")), *special.ids("eos_token_id")]
        separators = [*self._ids(*SEPARATORS), *ends]
        if not separators:
            raise ValueError(
                f"no document separator: its vocabulary has none of {', '.join(SEPARATORS)}, and no eos_token is named "
                "beside it in tokenizer_config.json, generation_config.json or config.json"
            )
        self.separator: int = separators[0]
        self.start: int = self._start()
        added = model.get_added_tokens_decoder().items()
        self.control: dict[str, int] = {token.content: i for i, token in added if token.special}
        self.stops: tuple[int, ...] = tuple(dict.fromkeys([*ends, self.separator, *self._ids(*TURN_ENDS)]))

    def _ids(self, *names: str | None) -> list[int]:
        """Return the ids of the tokens that the vocabulary has."""
        found = [self.model.token_to_id(name) for name in names if name]
        return [i for i in found if i is not None]

    def _start(self) -> int:
        """Return the bos id if the tokenizer puts it before a text, else the separator's."""
        named = self._ids(self.special.token("bos_token"))
        if self.special.token("bos_token") in TURN_STARTS:
            named = []
        elif "bos_token" not in self.special.names:
            named = self._ids(*STARTS)
        adds = self.special.names.get("add_bos_token")
        if adds is None:  # the tokenizer's own post-processor decides, if it has one
            adds = self.model.post_processor is None or self.model.encode("a").ids[:1] == named[:1]
        return named[0] if named and adds else self.separator

    def encode(self, text: str) -> list[int]:
        return self.model.encode_batch_fast([text], add_special_tokens=False)[0].ids  # `encode` holds Python's lock

    def encode_whole(self, text: str, length: int) -> list[int]:
        """Return at most `length` ids with the special tokens of an encoder ([CLS], [SEP])."""
        self.model.enable_truncation(length)
        ids = self.model.encode_batch_fast([text])[0].ids
        self.model.no_truncation()
        return ids

    def encode_rendered(
        self, text: str, *, inside: bool = False, as_text: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return (ids, character range of each) of a rendered template, or of its `inside` part.

        `as_text` reads names of special tokens as text; ValueError where that is impossible.
        """
        # SentencePiece puts a space before a text, which would be wrong inside one.
        front = "\n" if inside else ""
        found = self._encode_control(front + text, control=not as_text)
        ids, offsets = list(found.ids), [(a - len(front), b - len(front)) for a, b in found.offsets]
        if inside:
            lead = self._encode_control(front, control=True).ids
            if ids[: len(lead)] != lead:
                return self.encode_rendered(text, as_text=as_text)
            ids, offsets = ids[len(lead) :], offsets[len(lead) :]
        if as_text and self.model.token_to_id(text) in ids:
            raise ValueError(f"{text!r} in a message cannot be read as text: the tokenizer turns it into the token")
        return ids, offsets

    def _encode_control(self, text: str, *, control: bool):
        # This flag makes the library read names of special tokens as text. It is set back below.
        self.model.encode_special_tokens = not control
        (found,) = self.model.encode_batch([text], add_special_tokens=False)
        self.model.encode_special_tokens = True
        return found

    def names(self) -> dict[str, str]:
        """Return bos_token, eos_token and the others as chat templates read them."""
        own = {"eos_token": self.model.id_to_token(self.separator)}
        if self.start != self.separator:
            own["bos_token"] = self.model.id_to_token(self.start)
        return own | self.special.tokens()

    def encode_batch(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Yield the ids of each text. All texts are encoded on all cores before this returns."""
        return (
            np.array(found.ids, np.uint32) for found in self.model.encode_batch_fast(texts, add_special_tokens=False)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids without special tokens. An incomplete UTF-8 character becomes U+FFFD."""
        return self.model.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """Return one token as readable text."""
        return self.model.id_to_token(token) if token in (self.separator, self.start) else self.model.decode([token])

    def token_bytes(self) -> np.ndarray:
        """Return each token's UTF-8 bytes, (vocab_size,) int32; 0 for special tokens.

        All are 0 where encoding loses text. Byte-level tokens have a character per byte (GPT-2's
        paper, section 2.2). SentencePiece writes a space as U+2581 and a byte as <0x..>.
        """
        decoder = str(self.model.decoder)
        if "ByteLevel" in decoder:
            count = len
        elif "▁" in decoder or "Metaspace" in decoder:
            count = _sentencepiece_bytes
        else:
            return np.zeros(self.vocab_size, np.int32)
        special = {i for i, t in self.model.get_added_tokens_decoder().items() if t.special}
        names = (self.model.id_to_token(i) or "" for i in range(self.vocab_size))
        return np.array([0 if i in special else count(name) for i, name in enumerate(names)], np.int32)

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json to `path`, and the special tokens to a file beside it."""
        with files.replacing(Path(path)) as temporary:
            self.model.save(str(temporary))
        self.special.write(Path(path).parent)


def num_ids(model: Any) -> int:
    """Return the highest id plus 1, which exceeds the number of tokens where ids are missing."""
    most = max(model.get_vocab().values(), default=-1) + 1
    if most > MOST_IDS:
        raise ValueError(f"its ids go up to {most - 1}; at most {MOST_IDS - 1} is supported")
    return most


def _sentencepiece_bytes(piece: str) -> int:
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else len(piece.replace("▁", " ").encode())


def _byte_level(bpe):
    """Return a lossless `tokenizers.Tokenizer` around a BPE model."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, pre_tokenizers

    model = Model(bpe)
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return model


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE, which is smaller than `vocab_size` if the texts hold too few pairs."""
    from tokenizers import models, pre_tokenizers, trainers

    model = _byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATORS[0]], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    return Tokenizer(model)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train WordPiece as BERT's (arXiv:1609.08144): lower case, ## inside words, spacing lost."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    model = Model(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    model.train_from_iterator(texts, trainer)
    return Tokenizer(model)


def train_unigram(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train SentencePiece's unigram model (arXiv:1804.10959), with U+2581 for a space."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    try:
        model.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises plain Exception
        if "vocabulary is not large enough" not in str(error):
            raise
        raise ValueError(
            f"data.tokenizer.vocab_size: {vocab_size} is less than the characters that the training split holds; give more"
        ) from None
    return Tokenizer(model)


TRAINERS = {"bpe": train_bpe, "wordpiece": train_wordpiece, "unigram": train_unigram}


def byte_characters() -> list[str]:
    """Return the character of each byte as in GPT-2: itself if printable, else from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return [chr(b if b in printable else next(spare)) for b in range(256)]


def make_bytes() -> Tokenizer:
    """Return the byte tokenizer: the separator is token 0, and byte b is token b + 1."""
    from tokenizers import models

    vocab = {SEPARATORS[0]: 0} | {c: b + 1 for b, c in enumerate(byte_characters())}
    model = _byte_level(models.BPE(vocab=vocab, merges=[]))
    model.add_special_tokens([SEPARATORS[0]])
    return Tokenizer(model)


def read_json(path: Path, prefix: str = "") -> Any:
    """Read a tokenizer.json, also with a SentencePiece model inside. `prefix` begins errors."""
    from tokenizers import Tokenizer as Model

    try:
        with open(path, "rb") as file:
            own = file.read(len(sentencepiece_model.SAVED)) == sentencepiece_model.SAVED
        return sentencepiece_model.load(path) if own else Model.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{prefix}{path} is not a tokenizer.json ({reason})") from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json. Raises ValueError where the file is not one."""
    if not Path(path).is_file():
        raise ValueError(f"data.tokenizer.path: no such file: {path}")
    model = read_json(Path(path), "data.tokenizer.path: ")
    model.no_truncation()
    model.no_padding()
    try:
        return Tokenizer(model, special_tokens.read(Path(path).parent))
    except ValueError as error:
        raise ValueError(f"data.tokenizer.path: {path}: {error}") from None


def copy_tokenizer(folder: Path, path: str | Path) -> None:
    """Copy a folder's tokenizer.json to `path`, with its special tokens."""
    shutil.copyfile(folder / "tokenizer.json", path)
    special_tokens.read(folder).write(Path(path).parent)
