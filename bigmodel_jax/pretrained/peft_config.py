"""Reads and writes PEFT's adapter_config.json.

Every key is used, known to change nothing, or refused.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bigmodel_jax.pretrained.config_json import read_table

FILE = "adapter_config.json"
# Keys about how adapters were trained, named or initialised. They change nothing for given tensors.
INERT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("megatron_core", "qalora_group_size", "eva_config", "runtime_config", "init_lora_weights"),
}
# Keys that can change what is computed, with the values that change nothing.
NEUTRAL: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "ensure_weight_tying": (False,),
    "loftq_config": ({}, None),
    "target_parameters": (None, []),  # PEFT with transformers 5 writes [] for models with experts
    **dict.fromkeys(
        (
            *("megatron_config", "trainable_token_indices", "corda_config", "lora_ga_config", "velora_config"),
            *("alora_invocation_tokens", "monteclora_config", "layer_replication", "arrow_config"),
            "kasa_config",
        ),
        (None,),
    ),
}
# Initialisations that also change the base weights, which the folder does not hold.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda x: type(x) is int and x > 0, "a whole number, 1 or more"),
    "lora_alpha": (lambda x: _is_number(x) and x > 0, "a number above 0"),
    "lora_dropout": (lambda x: _is_number(x) and 0 <= x < 1, "a number from 0 to below 1"),
    "use_rslora": (lambda x: type(x) is bool, "true or false"),
    "use_dora": (lambda x: type(x) is bool, "true or false"),
    "fan_in_fan_out": (lambda x: type(x) is bool, "true or false"),
    "target_modules": (lambda x: isinstance(x, str) or _are_texts(x), "a list of names, a pattern, or all-linear"),
    "exclude_modules": (lambda x: x is None or isinstance(x, str) or _are_texts(x), "a list of names, or a pattern"),
    "modules_to_save": (lambda x: x is None or _are_texts(x), "a list of names"),
    "layers_to_transform": (lambda x: x is None or type(x) is int or _are_numbers(x), "a number, or a list of them"),
    "layers_pattern": (lambda x: x is None or isinstance(x, str) or _are_texts(x), "a name, or a list of them"),
    "rank_pattern": (lambda x: isinstance(x, dict) and _are_numbers([*x.values()]), "a table of patterns and ranks"),
    "alpha_pattern": (
        lambda x: isinstance(x, dict) and all(map(_is_number, x.values())),
        "a table of patterns and numbers",
    ),
}


def _is_number(x: Any) -> bool:
    # `type` is compared, because isinstance takes true and false for integers.
    return type(x) in (int, float) and math.isfinite(x)


def _are_numbers(x: Any) -> bool:
    return isinstance(x, list) and all(type(n) is int for n in x)


def _are_texts(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(text, str) for text in x)


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The keys of adapter_config.json that decide what is computed, by PEFT's names and defaults
    (0.21).

    - r, lora_alpha: rank and scale. An adapter is multiplied by lora_alpha / r.
    - lora_dropout: the dropout rate on an adapter's input, in training alone.
    - use_rslora: multiply by lora_alpha / sqrt(r) instead.
    - use_dora: adapters have a magnitude for each output (DoRA).
    - target_modules, exclude_modules: which modules have an adapter. An entry is a name, the last
      part of a name, or a regular expression.
    - modules_to_save: modules whose whole weights the folder holds.
    - layers_to_transform, layers_pattern: the layers that have adapters, and the name of the list
      of layers.
    - rank_pattern, alpha_pattern: ranks and alphas for the modules whose names match a pattern.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False  # base kernels are (in, out), as in GPT-2
    target_modules: list[str] | str = dataclasses.field(default_factory=list)
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def targets(self, module: str, linear: Collection[str], output: str) -> bool:
        """Whether the module has an adapter (PEFT's `check_target_module_exists`).

        linear: all linear modules of the model; output: the module that computes the logits, which
        "all-linear" leaves out.
        """
        if _named(self.exclude_modules or [], module) or self._keeps_whole(module):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return module in linear and module != output and self._in_layers(module)
            # PEFT does not look at the layer of a module that a pattern matches.
            return bool(re.fullmatch(self.target_modules, module))
        return _named(self.target_modules, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        """Whether `layers_to_transform` allows the module's layer."""
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        patterns = self.layers_pattern or [r"[^.]*"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        # Both beginnings are PEFT's own, so that the same layers are chosen.
        start = r".*?\." if not self.layers_pattern else r"(?:^|.*?\.)"
        found = next((m for p in patterns if (m := re.match(rf"{start}{p}\.(?P<idx>\d+)\.", module))), None)
        return found is not None and int(found["idx"]) in ([wanted] if isinstance(wanted, int) else wanted)

    def saves(self, module: str) -> bool:
        """Whether the folder holds the module's whole weights (PEFT's `_set_trainable`).

        A module is saved whose name, or that of a module around it, ends with an entry of
        `modules_to_save`: "norm" saves every `input_layernorm`.
        """
        ends = [match.start() for match in re.finditer(r"\.|$", module)]
        return any(module[:end].endswith(tuple(self.modules_to_save or ())) for end in ends)

    def _keeps_whole(self, module: str) -> bool:
        """Whether `modules_to_save` keeps adapters off the module."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save or [])

    def rank(self, module: str) -> int:
        """The rank of the module's adapter."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float:
        """The alpha of the module's adapter."""
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha)


def _named(names: list[str] | str, module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # As in PEFT, a key matches the end of a module's name, and the first matching key wins.
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read(folder: Path) -> PeftConfig:
    """The settings in the folder's adapter_config.json.

    Raises a ValueError of one line for a key with a wrong or unsupported value.
    """
    path, table = folder / FILE, dict(read_table(folder / FILE))
    for key, value in table.items():
        if key in KINDS and not KINDS[key][0](value):
            raise ValueError(f"{path}: {key} = {json.dumps(value)}; allowed: {KINDS[key][1]}")
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise ValueError(f"{path}: {key} = {json.dumps(value)} is not supported; supported: {_supported(key)}")
        # Each version of PEFT adds keys, with a default that turns the feature off.
        if key not in KINDS and key not in NEUTRAL and key not in INERT and value not in (None, False, [], {}):
            raise ValueError(f"{path}: {key} = {json.dumps(value)} is unknown here; supported: files without it")
    begun = table.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise ValueError(
            f'{path}: init_lora_weights = "{begun}" changes the base, which is not in this folder; save_pretrained with '
            "path_initial_model_for_weight_conversion writes adapters of the published base"
        )
    # PEFT always writes this key, and its default would depend on the model's type.
    if "target_modules" not in table:
        raise ValueError(f"{path}: target_modules is missing")
    _check_patterns(path, table)
    fields = {field.name for field in dataclasses.fields(PeftConfig)}
    return PeftConfig(**{key: value for key, value in table.items() if key in fields})


def _supported(key: str) -> str:
    return " or ".join(map(json.dumps, NEUTRAL[key]))


def _check_patterns(path: Path, table: dict) -> None:
    said = [table[key] for key in ("target_modules", "exclude_modules") if isinstance(table.get(key), str)]
    for pattern in [
        *said,
        *table.get("rank_pattern", {}),
        *table.get("alpha_pattern", {}),
        *(table.get("modules_to_save") or []),
    ]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{path}: {pattern!r} is no pattern: {error}") from None


def write(config: PeftConfig, folder: Path) -> None:
    """Writes the file with every key that PEFT 0.21 would write for these adapters.

    Keys that are not fields of PeftConfig have PEFT's defaults.
    """
    table = {"peft_type": "LORA", "bias": "none", "inference_mode": True, "init_lora_weights": True}
    table |= {"task_type": None, "base_model_name_or_path": None} | dataclasses.asdict(config)
    (folder / FILE).write_text(json.dumps(table, indent=2) + "\n")
