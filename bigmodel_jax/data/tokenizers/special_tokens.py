"""The special tokens of a published model, carried from its folder to a run and to an export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.data import cache
from bigmodel_jax.data.tokenizers.tokenizer_config import read_object

FILE = "special_tokens.json"  # in a run's folder, beside tokenizer.json
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # keys of config.json
# Keys of tokenizer_config.json that concern its own folder, or that are stored elsewhere.
LEFT_OUT = (
    "chat_template",
    "tokenizer_class",
    "auto_map",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
    "processor_class",
)


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The entries of a model's files about its special tokens. Each may be empty.

    - names: tokenizer_config.json.
    - generation: generation_config.json.
    - model: the ids in config.json.
    """

    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.names or self.generation or self.model)

    def token(self, name: str) -> str | None:
        """Return a token's text by its name ("bos_token"); None where there is none."""
        found = self.names.get(name)
        found = found.get("content") if isinstance(found, dict) else found
        return found if isinstance(found, str) and found else None

    def tokens(self) -> dict[str, str]:
        """Return {name: text} of all named tokens, as chat templates read them."""
        found = {name: self.token(name) for name in self.names if name.endswith("_token")}
        return {name: text for name, text in found.items() if text}

    def ids(self, name: str) -> list[int]:
        """Return the ids under a name ("eos_token_id").

        They are those of generation_config.json. If that file has none under the name, they are
        those of config.json.
        """
        value = self.generation.get(name)
        value = self.model.get(name) if value is None else value
        found = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int | None) for i in found):
            raise ValueError(f"{name} = {json.dumps(value)}; it must be a token's number, or a list of numbers")
        return [i for i in found if i is not None]

    def write(self, folder: Path) -> None:
        """Write the file of special tokens into a run's folder, unless nothing is known."""
        if self:
            files.replace(folder / FILE, json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n")


def read(folder: Path) -> SpecialTokens:
    """Read a run's or Hugging Face folder. Raises ValueError unless files are JSON objects."""
    if (folder / FILE).is_file():
        return SpecialTokens(**read_object(folder / FILE))
    names = read_object(folder / "special_tokens_map.json") | read_object(folder / "tokenizer_config.json")
    names = {name: value for name, value in names.items() if name not in LEFT_OUT}
    config = read_object(folder / "config.json")
    model = {name: config[name] for name in IDS if name in config}
    return SpecialTokens(names, read_object(folder / "generation_config.json"), model)


def from_gguf(metadata: dict[str, Any]) -> SpecialTokens:
    """Return the special tokens of a GGUF file.

    A text also ends with its `eot` and `eom` tokens, where they differ from `eos`.
    """
    tokens = metadata.get("tokenizer.ggml.tokens", [])

    def number(kind: str) -> int | None:
        found = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return int(found) if found is not None and 0 <= found < len(tokens) else None

    kinds = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    names = {f"{ours}_token": tokens[number(kind)] for ours, kind in kinds.items() if number(kind) is not None}
    if "tokenizer.ggml.add_bos_token" in metadata:
        names["add_bos_token"] = bool(metadata["tokenizer.ggml.add_bos_token"])
    # `eos` comes first, because the first stop token is the one that a model learns to write.
    ends = [i for i in dict.fromkeys(map(number, ("eos", "eot", "eom"))) if i is not None]
    model = {f"{ours}_token_id": number(kinds[ours]) for ours in ("bos", "pad") if number(kinds[ours]) is not None}
    return SpecialTokens(names, {}, model | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}))


def fingerprint(path: str | Path) -> str:
    """Return a digest of a tokenizer.json and of the special tokens in the files beside it."""
    special = read(Path(path).parent)
    digest = cache.file_digest(path)
    return cache.key(digest, dataclasses.asdict(special)) if special else digest[:16]
