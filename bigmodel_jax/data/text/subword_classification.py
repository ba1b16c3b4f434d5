"""Texts with one label each, tokenized by a pretrained encoder's tokenizer."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from bigmodel_jax.data.base import log_truncated
from bigmodel_jax.data.text.text_classification import LabelledTexts, TextClassificationData, vocabulary
from bigmodel_jax.data.tokenizers import special_tokens
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class SubwordClassificationData(TextClassificationData):
    """As `TextClassificationData`, but with an encoder's tokens: [CLS] text [SEP]."""

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "seq_len"}

    compared: ClassVar = TextClassificationData.compared | {"tokenizer_path": "tokenizer"}

    tokenizer_path: str = ""
    "the encoder's tokenizer.json"

    def __post_init__(self):
        super().__post_init__()
        if self.max_chars:
            raise ValueError(
                f"data.max_chars = {self.max_chars}; it must be 0, as these tokens are pieces of words already"
            )

    def open(self, split: str) -> LabelledTexts:
        tokenizer, (_, labels) = self.open_tokenizer(), vocabulary(self)
        examples, skipped = self.examples(split)
        tokens, long = np.zeros((len(examples), self.seq_len), np.int32), 0  # id 0 is [PAD] in BERT's vocabularies
        for row, (text, _) in enumerate(examples):
            ids = tokenizer.encode_whole(text, self.seq_len)
            tokens[row, : len(ids)] = ids
            # A row that is full may hold a whole text.
            long += len(ids) == self.seq_len < len(tokenizer.encode_whole(text, self.seq_len + 1))
        log_truncated(split, long, len(examples), self.seq_len)
        return LabelledTexts(tokens, np.array([labels.index(label) for _, label in examples], np.int32), skipped)

    def open_tokenizer(self) -> Tokenizer:
        if not Path(self.tokenizer_path).is_file():
            raise ValueError(f"data.tokenizer_path = {self.tokenizer_path!r}: no such file; `import` writes one")
        return load_tokenizer(self.tokenizer_path)

    def reads(self) -> dict[str, list[Path] | str]:
        found = super().reads()
        # The files beside tokenizer.json change tokens, too, so a digest of all replaces the path.
        return found | {
            name: special_tokens.fingerprint(found[name][0]) for name in found.keys() & {"data.tokenizer_path"}
        }

    def requirements(self) -> dict:
        needs = {"vocab_size": self.open_tokenizer().vocab_size, "max_seq_len": self.seq_len}
        return super().requirements() | needs

    def save_artifacts(self, folder: Path) -> None:
        super().save_artifacts(folder)
        self.open_tokenizer().save(folder / "tokenizer.json")
