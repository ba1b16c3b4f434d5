"""Writes tiny tokenizers in the forms in which they are published, and what transformers makes of
seeded texts.

Runs in a Python of its own that has transformers, and imports nothing of the project:

    python tests/data/make_tokenizer_forms.py

One folder per form in tokenizer_forms/, as published; its expected.json holds, for each, a digest
per text of the ids that its class gives.
"""

import hashlib
import json
import shutil
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tokenizer_texts import CORPUS, texts

HERE = Path(__file__).parent / "tokenizer_forms"
COUNT = 1000


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:6]


def byte_level(corpus: list[str], special: list[str], size: int = 420, **bpe) -> dict:
    model = Tokenizer(models.BPE(**bpe))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": size, "special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    model.train_from_iterator(corpus, trainers.BpeTrainer(**options, **bpe))
    return json.loads(model.to_str())["model"]


def write_merges(folder: Path, vocab: dict, merges: list, config: dict) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def gpt2(folder: Path, **config) -> None:
    model = byte_level(CORPUS, ["<|endoftext|>"])
    write_merges(folder, model["vocab"], model["merges"], {"tokenizer_class": "GPT2Tokenizer", **config})


def qwen2(folder: Path) -> None:
    model = byte_level(CORPUS, ["<|endoftext|>"])
    size = len(model["vocab"])
    decoder = {
        str(size): added("<|im_start|>"),
        str(size + 1): added("<|im_end|>"),
        str(size + 2): added("<tool_call>", special=False),
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
    write_merges(folder, model["vocab"], model["merges"], config)


def added(content: str, special: bool = True) -> dict:
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content, "special": special, **flags}


def roberta(folder: Path) -> None:
    model = byte_level(CORPUS, ["<s>", "<pad>", "</s>", "<unk>"])
    vocab = model["vocab"] | {"<mask>": len(model["vocab"])}
    write_merges(folder, vocab, model["merges"], {"tokenizer_class": "RobertaTokenizer"})


def clip(folder: Path) -> None:
    model = byte_level([line.lower() for line in CORPUS], [], size=640, end_of_word_suffix="</w>")
    vocab = dict(model["vocab"])
    for name in ("<|startoftext|>", "<|endoftext|>"):
        vocab[name] = len(vocab)
    write_merges(folder, vocab, model["merges"], {"tokenizer_class": "CLIPTokenizer"})


def bert(folder: Path, **config) -> None:
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=False),
        pre_tokenizers.BertPreTokenizer(),
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    bare = [normalizers.BertNormalizer(lowercase=True).normalize_str(line) for line in CORPUS]
    model.train_from_iterator([*CORPUS, *bare], trainer)
    vocab = sorted(model.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(piece for piece, _ in vocab) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))


FORMS = {
    "gpt2": lambda folder: gpt2(folder),
    "gpt2_prefix_space": lambda folder: gpt2(folder, add_prefix_space=True),
    "qwen2": qwen2,
    "roberta": roberta,
    "clip": clip,
    "bert": lambda folder: bert(folder),
    "bert_cased": lambda folder: bert(folder, do_lower_case=False),
    "bert_keeps_accents": lambda folder: bert(folder, strip_accents=False),
    "bert_cased_strips_accents": lambda folder: bert(folder, do_lower_case=False, strip_accents=True),
    "bert_no_chinese": lambda folder: bert(folder, tokenize_chinese_chars=False),
}


def main() -> None:
    expected = {"versions": {"transformers": transformers.__version__}}
    for name, write in FORMS.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        model = getattr(transformers, config["tokenizer_class"]).from_pretrained(folder)
        whole = [model.encode(text) for text in texts(COUNT)]
        plain = [model.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts(COUNT)]
        expected[name] = {"whole": "".join(map(digest, whole)), "plain": "".join(map(digest, plain))}
        print(f"{name}: {len(model)} tokens")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
