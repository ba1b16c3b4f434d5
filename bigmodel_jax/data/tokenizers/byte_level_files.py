"""Reads published byte-level BPE: vocab.json with merges.txt, or tiktoken's ranks."""

import base64
import itertools
import json
from pathlib import Path
from typing import Any

from bigmodel_jax.data.tokenizers.tokenizer_config import About, add_tokens, named_tokens
from bigmodel_jax.data.tokenizers.tokenizers import byte_characters

# The pattern by which Llama 3, Qwen and tiktoken's cl100k divide a text into words; %s is the range
# of digits.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
END = "<|endoftext|>"
GPT2 = {"unk_token": END, "bos_token": END, "eos_token": END}
ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
CLIP = {"unk_token": END, "bos_token": "<|startoftext|>", "eos_token": END, "pad_token": END}
QWEN2 = {"unk_token": END, "eos_token": END, "pad_token": END}
DEFAULTS = {
    "GPT2Tokenizer": GPT2,
    "CodeGenTokenizer": GPT2,
    "RobertaTokenizer": ROBERTA,
    "BartTokenizer": ROBERTA,
    "LongformerTokenizer": ROBERTA,
    "CLIPTokenizer": CLIP,
    "Qwen2Tokenizer": QWEN2,
}
"The tokenizer classes that are supported, with the special tokens of each."


def byte_level(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    first: list = (),
    *,
    words: bool = True,
    prefix_space: bool = False,
    **bpe: Any,
) -> Any:
    """Return a byte-level BPE tokenizer.

    - first: pre-tokenizers before the one that turns bytes into characters.
    - words: divide the text into words as GPT-2 does.
    - bpe: further arguments of `tokenizers.models.BPE`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        model = Tokenizer(models.BPE(vocab=vocab, merges=merges, **bpe))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"its merges do not fit its vocabulary ({str(error).rpartition(': ')[2][:100]})") from None
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=words)
    model.pre_tokenizer = pre_tokenizers.Sequence([*first, last]) if first else last
    model.decoder = decoders.ByteLevel()
    return model


def split(pattern: str, behavior: str = "isolated", *, invert: bool = False) -> Any:
    """Return a pre-tokenizer that splits a text by a regular expression."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


def from_vocab_and_merges(about: About) -> Any:
    """Read vocab.json and merges.txt as the folder's tokenizer class does; GPT-2's by default."""
    about.check_class("vocab.json", *DEFAULTS)
    vocab, merges = _vocab(about.folder / "vocab.json"), _merges(about.folder / "merges.txt")
    name = about.tokenizer_class
    if not name and any(token.endswith("</w>") for token in vocab):
        about.refuse("vocab.json marks ends of words (</w>), and no file says by which class")
    defaults = DEFAULTS[name or "GPT2Tokenizer"]
    try:
        model = _clip(about, vocab, merges) if name == "CLIPTokenizer" else _words(about, vocab, merges)
    except ValueError as error:
        # A message of `refuse` names the folder already.
        if str(about.folder) in str(error):
            raise
        raise ValueError(f"{about.folder / 'merges.txt'}: {error}") from None
    add_tokens(model, about, defaults)
    # Only classes of encoders put special tokens around a text.
    if defaults in (ROBERTA, CLIP):
        model.post_processor = _whole(about, model, defaults)
    return model


def _words(about: About, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return the tokenizer of GPT-2's, RoBERTa's or Qwen2's class."""
    from tokenizers import normalizers

    about.check_keys("add_prefix_space")
    prefix_space = bool(about.config.get("add_prefix_space"))
    if about.tokenizer_class != "Qwen2Tokenizer":
        return byte_level(vocab, merges, prefix_space=prefix_space)
    model = byte_level(vocab, merges, [split(WORDS % "1")], words=False, prefix_space=prefix_space)
    model.normalizer = normalizers.NFC()
    return model


def _clip(about: About, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return CLIP's tokenizer, which lower-cases text and marks the ends of words."""
    from tokenizers import Regex, decoders, normalizers

    about.check_keys("do_lower_case")
    if about.config.get("do_lower_case") is False:
        about.refuse("tokenizer_config.json has do_lower_case = False, which CLIPTokenizer does not read")
    unknown = named_tokens(about, CLIP)["unk_token"]
    model = byte_level(
        vocab, merges, [split(CLIP_WORDS, "removed", invert=True)], unk_token=unknown, end_of_word_suffix="</w>"
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    model.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    ends = [decoders.Replace("</w>", " "), decoders.Strip(content=" ", left=0, right=1)]
    model.decoder = decoders.Sequence([decoders.ByteLevel(), *ends])
    return model


def _whole(about: About, model: Any, defaults: dict[str, str]) -> Any:
    """Return the post-processor that adds the special tokens around an encoder's text."""
    from tokenizers import processors

    named = named_tokens(about, defaults)
    first, last = (
        named[k] for k in (("cls_token", "sep_token") if defaults is ROBERTA else ("bos_token", "eos_token"))
    )
    ids = {name: model.token_to_id(name) for name in (first, last)}
    if None in ids.values():
        about.refuse(f"vocab.json has no {first!r} or no {last!r}")
    if defaults is CLIP:
        return processors.RobertaProcessing(
            (last, ids[last]), (first, ids[first]), trim_offsets=False, add_prefix_space=False
        )
    prefix = bool(about.config.get("add_prefix_space"))
    return processors.RobertaProcessing(
        (last, ids[last]), (first, ids[first]), trim_offsets=True, add_prefix_space=prefix
    )


def _vocab(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error)[:100]})") from None
    # `type` is compared, because isinstance takes true and false for integers.
    if not isinstance(found, dict) or not found or not all(type(i) is int and i >= 0 for i in found.values()):
        raise ValueError(f"{path}: it must be a JSON object that maps each token to its id")
    return found


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    lines = [line.rstrip("\r") for line in lines]
    # A merge may begin with "#", so only the line of the file's version is left out.
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong:
        raise ValueError(f"{path}: each line must hold two tokens, unlike {' '.join(wrong)[:60]!r}")
    return pairs


# ---------------------------------------------------------------- ranks


def from_tiktoken(path: Path, digits: str = "1,3") -> Any:
    """Read tiktoken's format: base64 of a token and its rank per line (Llama 3, *.tiktoken)."""
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"{path}: line {number} is not a token in base64 and its rank") from None
    return from_ranks(ranks, digits)


def from_ranks(ranks: dict[bytes, int], digits: str = "1,3") -> Any:
    """Return a byte-level BPE whose merges follow from the ranks.

    A token's last merge joins the two parts into which the lower ranks alone merge its bytes.
    """
    spell = byte_characters()
    name = {token: "".join(spell[b] for b in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _bpe(ranks, token, rank)
            # A token that no merge of two parts gives can only be used as a whole word.
            if len(parts) == 2:
                merges.append((name[parts[0]], name[parts[1]]))
    # As in tiktoken, a word that is a token becomes that token even if no merges lead to it.
    vocab = {name[t]: r for t, r in ranks.items()}
    return byte_level(vocab, merges, [split(WORDS % digits)], words=False, ignore_merges=True)


def _bpe(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    """Merge the token's bytes by all ranks lower than `below`."""
    parts = [bytes([b]) for b in token]
    while True:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        # Of equal pairs the leftmost is merged first, as in tiktoken.
        rank, i = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
