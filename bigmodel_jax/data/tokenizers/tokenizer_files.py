"""Reads published tokenizers in all their file formats.

The formats are tokenizer.json, vocab.json with merges.txt, BERT's vocab.txt, SentencePiece models,
tiktoken-style ranks, and GGUF. A tokenizer is refused if its files hold a setting that changes ids
and is not supported.
"""

import re
from pathlib import Path
from typing import Any

from bigmodel_jax.data.tokenizers import sentencepiece_model, tokenizer_config
from bigmodel_jax.data.tokenizers.byte_level_files import from_tiktoken, from_vocab_and_merges
from bigmodel_jax.data.tokenizers.gguf_tokenizer import from_gguf_metadata
from bigmodel_jax.data.tokenizers.sentencepiece_model import Added, SentencePieceModel
from bigmodel_jax.data.tokenizers.tokenizer_config import (
    About,
    Token,
    add_tokens,
    added_tokens,
    check_id,
    named_tokens,
    token_decoder,
)
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer, read_json

# `tokenizers` is imported inside functions, because the import takes 0.1 s, which `--help` need not
# wait for.

__all__ = ["from_folder", "from_gguf_metadata", "from_sentencepiece", "from_wordpiece", "of_encoder"]

BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
BERT_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"Keys of tokenizer_config.json -> the arguments of `tokenizers.normalizers.BertNormalizer`."
WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
SENTENCEPIECE = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "MistralTokenizer", "T5Tokenizer")
"The classes that encode a text exactly as SentencePiece does."


def from_folder(folder: Path) -> Any:
    """Return the tokenizer of a Hugging Face folder; None where the folder has no tokenizer.

    Raises ValueError for a tokenizer that cannot be read exactly.
    """
    about = tokenizer_config.read_about(folder)
    if (folder / "tokenizer.json").is_file():
        return _from_json(about, folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_vocab_and_merges(about)
    if (folder / "vocab.txt").is_file():
        return from_wordpiece(about)
    models = sorted(folder.glob("*.model")) + sorted(folder.glob("*.model.v*"))
    ranks = sorted(folder.glob("*.tiktoken"))
    if not models and not ranks:
        return None
    path = (models or ranks)[0]  # Llama 3's ranks are called tokenizer.model, too
    if ranks or re.match(rb"[A-Za-z0-9+/=]+ \d+\s", path.read_bytes()[:200]):
        return _with_tokens(from_tiktoken(path), about)
    return from_sentencepiece(about, path)


def of_encoder(path: str) -> Tokenizer:
    """Return the tokenizer.json of `data.tokenizer_path`, which encodes words and pairs of texts.

    Raises ValueError where there is no such file, or where the file holds a SentencePiece model,
    which encodes whole texts alone.
    """
    if not Path(path).is_file():
        raise ValueError(f"data.tokenizer_path = {path!r}: no such file; `import` writes one")
    tokenizer = load_tokenizer(path)
    if isinstance(tokenizer.model, SentencePieceModel):
        raise ValueError(
            f"data.tokenizer_path = {path!r} holds a SentencePiece model, which encodes no words and pairs of texts; "
            "give the tokenizer.json of an encoder such as BERT"
        )
    return tokenizer


def _from_json(about: About, path: Path) -> Any:
    """Read tokenizer.json, with the changes that transformers makes by tokenizer_config.json."""
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    model = read_json(path)
    if isinstance(model, SentencePieceModel):  # this package saved it, with its added tokens
        return model
    if isinstance(model.normalizer, normalizers.BertNormalizer):
        for key, name in BERT_NORMALIZER.items():
            if key in about.config:
                setattr(model.normalizer, name, about.config[key])
    if isinstance(model.pre_tokenizer, pre_tokenizers.ByteLevel) and about.config.get("add_prefix_space") is not None:
        model.pre_tokenizer.add_prefix_space = bool(about.config["add_prefix_space"])
    named, there = named_tokens(about, {}), {t.content: t for t in model.get_added_tokens_decoder().values()}
    for token in added_tokens(about, named):
        token = token._replace(special=token.special or token.content in named.values())
        new, old = AddedToken(token.content, **token.flags()), there.get(token.content)
        # A token without an id names one that the vocabulary has, and that others must not spell.
        missing = old is None and (token.id is not None or model.token_to_id(token.content) is not None)
        # The flags in an `added_tokens_decoder` win over those in tokenizer.json.
        if missing or (old and token.id is not None and token_decoder(about) and repr(new) != repr(old)):
            model.add_tokens([new])
        check_id(about, token, model.token_to_id(token.content))
    return model


def _with_tokens(model: Any, about: About) -> Any:
    add_tokens(model, about, {})
    return model


# ---------------------------------------------------------------- WordPiece


def from_wordpiece(about: About) -> Any:
    """Read BERT's vocab.txt, a piece per line, with its normalizer and special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    path = about.folder / "vocab.txt"
    about.check_class("vocab.txt", *WORDPIECE)
    about.check_keys("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    vocab, named = _lines(path), named_tokens(about, BERT)
    missing = [named[key] for key in ("unk_token", "cls_token", "sep_token") if named[key] not in vocab]
    if missing:
        raise ValueError(
            f"{path}: no {', '.join(missing)} among its {len(vocab)} pieces, so it is no WordPiece vocabulary"
        )
    model = Tokenizer(models.WordPiece(vocab=vocab, unk_token=named["unk_token"]))
    model.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(about.config.get("tokenize_chinese_chars", True)),
        strip_accents=about.config.get("strip_accents"),
        lowercase=bool(about.config.get("do_lower_case", True)),
    )
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    # `BertProcessing` takes [SEP] first.
    ends = [(named[key], vocab[named[key]]) for key in ("sep_token", "cls_token")]
    model.post_processor = processors.BertProcessing(*ends)
    add_tokens(model, about, BERT)
    return model


def _lines(path: Path) -> dict[str, int]:
    """Return {piece: line number}. The last line counts for a repeated piece."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    # Only a line feed ends a piece; splitlines would also split at characters such as U+2028.
    lines = text.removesuffix("\n").split("\n")
    return {line: i for i, line in enumerate(lines)} if text else {}


# ---------------------------------------------------------------- SentencePiece


def from_sentencepiece(about: About, path: Path) -> Any:
    """Read a SentencePiece model, by `tokenizers` where that is exact."""
    about.check_class(path.name, *SENTENCEPIECE)
    about.check_keys("add_prefix_space", "extra_ids")
    model = path.read_bytes()
    try:
        converted = sentencepiece_model.convert(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not about.tokenizer_class and _is_t5(path, model):
        about = about._replace(tokenizer_class="T5Tokenizer")
    prefix = sentencepiece_model.parse(model).normalizer_spec.add_dummy_prefix
    if about.config.get("add_prefix_space") not in (None, prefix):
        about.refuse(f"tokenizer_config.json has add_prefix_space = {not prefix}, and {path.name} says {prefix}")
    if converted is not None and about.tokenizer_class != "T5Tokenizer":
        return _with_tokens(converted, about)
    added, closing = _beside(about, model)
    name = about.tokenizer_class or "LlamaTokenizer"
    return SentencePieceModel(model, added=added, closing=closing, file=path.name, tokenizer_class=name)


def _is_t5(path: Path, model: bytes) -> bool:
    """Tell whether an undescribed model has T5's file name and T5's first pieces."""
    pieces = sentencepiece_model.parse(model).pieces if path.name == "spiece.model" else []
    return [piece.piece for piece in pieces[:3]] == ["<pad>", "</s>", "<unk>"]


def _beside(about: About, model: bytes) -> tuple[tuple[Added, ...], tuple[int, ...]]:
    """Return (the tokens besides the model's own, the ids that end an encoder's text)."""
    ids = {piece.piece: i for i, piece in enumerate(sentencepiece_model.parse(model).pieces)}
    t5 = about.tokenizer_class == "T5Tokenizer"
    named = named_tokens(about, {"eos_token": "</s>"} if t5 else {})
    out = []
    for token in [*(_sentinels(about) if t5 else []), *added_tokens(about, named)]:
        got = ids.setdefault(token.content, len(ids))
        check_id(about, token, got)
        out.append(Added(token.content, got, token.special, token.lstrip, token.rstrip, token.single_word))
    if t5 and named["eos_token"] not in ids:
        about.refuse(f"its SentencePiece model has no {named['eos_token']!r}")
    return tuple({token.id: token for token in out}.values()), (ids[named["eos_token"]],) if t5 else ()


def _sentinels(about: About) -> list[Token]:
    """Return T5's sentinel tokens, the last one first."""
    count = about.config.get("extra_ids", 100)
    if type(count) is not int or count < 0:
        about.refuse(f"tokenizer_config.json has extra_ids = {count!r}")
    return [Token(f"<extra_id_{i}>") for i in reversed(range(count))]
