"""Reads config.json so that every key is accounted for.

Every key has one of four fates: the family reads it, it is known to change nothing, it is refused,
or the log names it as not used.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_jax.models import ModelConfig
from bigmodel_jax.pretrained import config_keys, model_types
from bigmodel_jax.pretrained.family import Family

log = logging.getLogger(__name__)

# The keys of these tables are checked one by one. Any other table, such as id2label, counts as one
# key.
ROTARY = ("rope_parameters", "rope_scaling", "full_attention", "sliding_attention")
GENERATION = ("forced_bos_token_id",)
NESTED = (
    *ROTARY,
    "quantization_config",
    "text_config",
    "vision_config",
    "encoder_config",
    "text_config_dict",
    "vision_config_dict",
)


class Keys(dict):
    """A table of config.json that checks each value's type on reading and notes which keys were
    read.

    path: the dotted path of this table, with a dot at its end; read: the set of paths read so far,
    which nested tables share.
    """

    def __init__(self, table: dict, path: str = "", read: set[str] | None = None):
        self.path, self.seen = path, set() if read is None else read
        super().__init__({k: Keys(x, f"{path}{k}.", self.seen) if isinstance(x, dict) else x for k, x in table.items()})

    def __getitem__(self, name: str) -> Any:
        return self._checked(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self._checked(name, super().get(name)) if name in self else self._noted(name, default)

    # dict's own `|` returns a plain dict, which would not note what is read.
    def __or__(self, other: dict) -> "Keys":
        return self._merged({**self, **other})

    def __ror__(self, other: dict) -> "Keys":
        return self._merged({**other, **self})

    def _merged(self, table: dict) -> "Keys":
        """The merged table. Nested tables keep the paths at which they stood in the file."""
        merged = Keys({}, self.path, self.seen)
        merged.update(table)
        return merged

    def _noted(self, name: str, value: Any) -> Any:
        self.seen.add(self.path + name)
        return value

    def read_as(self, name: str, kind: config_keys.Kind) -> Any:
        """The value of a key, checked against `kind` instead of the kind that other families
        expect.
        """
        return self._checked(name, super().__getitem__(name), kind)

    def _checked(self, name: str, value: Any, kind: config_keys.Kind | None = None) -> Any:
        kind = kind or config_keys.KINDS.get(name)
        if kind and not kind.holds(value):
            raise ValueError(f"config.json: {self.path}{name} = {json.dumps(value)}; allowed: {kind.allowed}")
        return self._noted(name, value)

    def unread(self) -> Iterator[tuple[str, str, Any]]:
        """Yields (path, name, value) for each key that was never read."""
        for name, value in self.items():
            path = self.path + name
            # A nested table counts as unread where none of its keys was read.
            inside = isinstance(value, Keys) and name in NESTED
            if path not in self.seen or (inside and value and not any(f"{path}.{key}" in self.seen for key in value)):
                yield path, name, value
            elif inside:
                yield from value.unread()


def read_as(hf: dict, name: str, kind: config_keys.Kind) -> Any:
    """Calls `Keys.read_as`. A plain dict gives its value unchecked."""
    return hf.read_as(name, kind) if isinstance(hf, Keys) else hf[name]


def read_table(path: Path) -> Keys:
    """The table in a JSON file.

    ValueError where the file is missing, is not JSON or is not a table of keys.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a Hugging Face folder has one")
    try:
        table = json.loads(path.read_bytes())
    # A file of deeply nested lists raises RecursionError.
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: a {type(table).__name__}; allowed: a table of keys, {{...}}")
    return Keys(table)


def with_generation(hf: Keys, folder: Path) -> Keys:
    """config.json with the keys of generation_config.json that a model's config holds.

    transformers 5 writes these keys to that file alone, and it reads them there where the file
    exists.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return hf
    found = read_table(path)
    # transformers reads the other file alone, so a key that only config.json has becomes null.
    return hf | {name: found.get(name) for name in GENERATION if name in hf or name in found}


def check_unread(family: Family, hf: Keys) -> None:
    """Raises ValueError for an unread key that would change what the model computes.

    One line of the log names all unknown keys.
    """
    ours = family.config.__name__
    check_model_type(ours, hf)
    aliases, unknown = model_types.ALIASES.get(ours, {}), []
    # The list is made first, because looking up an alias below marks that key as read.
    for path, name, value in list(hf.unread()):
        above = path.removesuffix(name).rstrip(".")
        inside = above.rpartition(".")[2]
        allowed = config_keys.NEUTRAL.get(name)
        # A key that is another name of a key in the file may only repeat its value.
        if not above and aliases.get(name) in hf:
            allowed = (hf[aliases[name]], None)
        if name in config_keys.INERT or (allowed is not None and value in allowed):
            continue
        if allowed is not None or (inside in ROTARY and name not in config_keys.ROPE_KEYS):
            said = f"supported: {' or '.join(map(json.dumps, allowed))}" if allowed else "supported: files without it"
            raise ValueError(f"config.json: {path} = {json.dumps(value)} is not supported; {said}")
        unknown.append(path)
    if unknown:
        log.warning("config.json: not used: %s", ", ".join(sorted(unknown)))


def check_fields(config: ModelConfig) -> None:
    """Raises ValueError for a field whose value is not of its default's type.

    Such a value can come from a key that has no entry in `config_keys.KINDS`.
    """
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        # `type` is compared, because isinstance takes true and false for integers.
        if type(value) not in kinds:
            raise ValueError(
                f"config.json has {field.name} = {value!r}; in a {type(config).__name__} it must be a {kinds[-1].__name__}"
            )


def check_model_type(ours: str, hf: dict) -> None:
    """Raises ValueError where `model_type` names another model than `architectures`.

    transformers chooses the model by `model_type` alone. ours: the name of our config class.
    """
    given, known = hf.get("model_type"), model_types.MODEL_TYPES
    allowed = known.get(ours, (given,))
    if any(given in types for types in known.values()) and given not in allowed:
        raise ValueError(
            f"config.json: model_type = {given!r} names another model than {hf.get('architectures')}; "
            f"supported: {', '.join(allowed)}"
        )
