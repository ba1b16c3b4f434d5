"""The forms in which published tokenizers come, all read into one `tokenizers.Tokenizer`.

tokenizer.json, GPT-2's vocab.json and merges.txt, BERT's vocab.txt, a SentencePiece model, tiktoken-style ranks, GGUF.
"""

import base64
import itertools
import json
import re
from pathlib import Path
from typing import Any

# `tokenizers` is imported inside: 0.1 s that `--help` does not pay.

# Words as Llama 3, Qwen and tiktoken's cl100k cut them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNKNOWN, CONTROL, BYTE = 2, 3, 6  # of tokenizer.ggml.token_type


def from_folder(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, or None where it has none."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_vocab_and_merges(folder / "vocab.json", folder / "merges.txt")
    if (folder / "vocab.txt").is_file():
        return from_wordpiece(folder / "vocab.txt", lowercase=_lowercase(folder))
    models = sorted(folder.glob("*.model")) + sorted(folder.glob("*.model.v*"))
    if models:  # Llama 3 calls its ranks tokenizer.model, too
        ranked = re.match(rb"[A-Za-z0-9+/=]+ \d+\s", models[0].read_bytes()[:200])
        return from_tiktoken(models[0]) if ranked else from_sentencepiece(models[0])
    ranks = sorted(folder.glob("*.tiktoken"))
    return from_tiktoken(ranks[0]) if ranks else None


def _lowercase(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text()).get("do_lower_case", True) if path.is_file() else True


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]], first: list) -> Any:
    """A byte-level BPE; `first`: pre-tokenizers before the one that turns bytes into characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not _splits(first))
    model.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level]) if first else byte_level
    model.decoder = decoders.ByteLevel()
    return model


def _splits(first: list) -> bool:
    from tokenizers import pre_tokenizers

    return any(isinstance(p, pre_tokenizers.Split) for p in first)


def _word_split(digits: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(WORDS % digits), behavior="isolated")


def from_vocab_and_merges(vocab: Path, merges: Path) -> Any:
    """GPT-2's two files: encoder.json (or vocab.json) and vocab.bpe (or merges.txt)."""
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    ids = json.loads(vocab.read_text(encoding="utf-8"))
    model = _byte_level(ids, pairs, [])
    model.add_special_tokens([t for t in ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>") if t in ids])
    return model


def from_wordpiece(path: Path, *, lowercase: bool = True) -> Any:
    """BERT's vocab.txt, one piece a line, with BERT's normaliser, word split and [CLS] text [SEP]."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {line: i for i, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))}
    model = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    model.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab])
    return model


def from_sentencepiece(path: Path) -> Any:
    """A SentencePiece model of kind BPE (Llama 2, Mistral) or unigram (T5), with its byte fallback."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ValueError(
            f"{path}: SentencePiece models need the package sentencepiece: uv sync --extra pretrained"
        ) from None
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not a SentencePiece model ({error})") from None
    size = processor.vocab_size()
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(size)]
    byte_fallback = any(processor.is_byte(i) for i in range(size))
    control = [p for i, (p, _) in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)]
    if _is_unigram(processor, pieces):
        from tokenizers import models

        model = models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=byte_fallback)
    else:
        model = _merging(pieces, pieces[processor.unk_id()][0], byte_fallback)
    return _sentencepiece(model, control)


def _merging(pieces: list[tuple[str, float]], unknown: str, byte_fallback: bool) -> Any:
    """SentencePiece's BPE as a model of `tokenizers`."""
    from tokenizers import models

    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = _merges(vocab)
    return models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)


def _sentencepiece(model: Any, control: list[str], *, prefix: bool = True) -> Any:
    """The tokenizer around a model whose pieces write a space as U+2581; prefix: a text is read with one in front."""
    from tokenizers import Tokenizer, decoders, normalizers

    tokenizer = Tokenizer(model)
    first = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    last = [decoders.Strip(content=" ", left=1, right=0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    tokenizer.add_special_tokens(control)
    return tokenizer


def _is_unigram(processor: Any, pieces: list[tuple[str, float]]) -> bool:
    """A BPE's scores are the negative order of its merges: whole numbers."""
    return not all(float(score).is_integer() for i, (_, score) in enumerate(pieces) if not processor.is_byte(i))


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two pieces, in the order of the pieces' ids: SentencePiece keeps no list."""
    out = []
    for piece in vocab:
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [(a, b) for a, b in halves if a in vocab and b in vocab]
        out += [(vocab[piece], vocab[a], vocab[b], a, b) for a, b in found]
    return [(a, b) for *_, a, b in sorted(out)]


def from_tiktoken(path: Path, digits: str = "1,3") -> Any:
    """tiktoken-style ranks: base64 of a token's bytes and its rank, one a line (Llama 3's tokenizer.model, *.tiktoken)."""
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return from_ranks(ranks, digits)


def from_ranks(ranks: dict[bytes, int], digits: str = "1,3") -> Any:
    """A byte-level BPE whose merges are read off the ranks: a token's last merge joins the two parts that the lower
    ranks alone would leave."""
    from bigmodel_jax.data.tokenizers import byte_characters

    spell = byte_characters()
    name = {token: "".join(spell[b] for b in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _bpe(ranks, token, rank)
            if len(parts) == 2:
                merges.append((name[parts[0]], name[parts[1]]))
    return _byte_level({name[t]: r for t, r in ranks.items()}, merges, [_word_split(digits)])


def _bpe(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    """The token's bytes merged by all ranks lower than `below`."""
    parts = [bytes([b]) for b in token]
    while True:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, i = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def from_gguf_metadata(metadata: dict, path: Path) -> Any:
    """The tokenizer inside a GGUF file; ValueError for a kind that is neither byte-level BPE nor SentencePiece's BPE."""
    kind = metadata.get("tokenizer.ggml.model")
    kinds = {"gpt2": _gguf_byte_level, "llama": _gguf_sentencepiece}
    if kind not in kinds:
        raise ValueError(
            f"{path}: tokenizer kind {kind!r} is not supported; supported: 'gpt2' (byte-level BPE), 'llama' (SentencePiece)"
        )
    return kinds[kind](metadata, path)


def _gguf_tokens(metadata: dict, *kinds: int) -> list[str]:
    """The tokens of these kinds (tokenizer.ggml.token_type)."""
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    return [token for token, kind in pairs if kind in kinds]


def _gguf_byte_level(metadata: dict, path: Path) -> Any:
    from tokenizers import pre_tokenizers

    first = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [_word_split("1,3")],
        "qwen2": [_word_split("1")],
        "gpt-2": [],
    }
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in first:
        raise ValueError(f"{path}: tokenizer.ggml.pre = {pre!r} is not supported; supported: {', '.join(first)}")
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    model = _byte_level(vocab, merges, first[pre])
    model.add_special_tokens(_gguf_tokens(metadata, CONTROL))
    return model


def _gguf_sentencepiece(metadata: dict, path: Path) -> Any:
    """Llama 2's and Mistral's kind: pieces with scores, the list of merges left to be found."""
    pieces = list(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    unknown = _gguf_tokens(metadata, UNKNOWN)
    if not unknown:
        raise ValueError(f"{path}: tokenizer.ggml.token_type marks no unknown token, which SentencePiece always has")
    model = _merging(pieces, unknown[0], byte_fallback=bool(_gguf_tokens(metadata, BYTE)))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    return _sentencepiece(model, _gguf_tokens(metadata, CONTROL, UNKNOWN), prefix=prefix)
