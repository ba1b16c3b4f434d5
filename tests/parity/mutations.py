"""Seeded single changes of a config.json, for tests and for a comparison with transformers; imports
nothing of either."""

import copy
import random
from collections.abc import Iterator
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """path: the key, from the outermost table inwards; kind: what was done; config: the whole file
    afterwards."""

    path: tuple[str, ...]
    kind: str
    config: dict

    @property
    def value(self) -> Any:
        """The key's new value; KeyError where it was taken away."""
        found = self.config
        for name in self.path:
            found = found[name]
        return found


# Keys that files of other models have, with values that ask for something.
ADDED = [
    ("sliding_window", 3),
    ("use_sliding_window", True),
    ("layer_types", ["sliding_attention", "full_attention"]),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("qkv_bias", False),
    ("hidden_act", "relu"),
    ("head_dim", 2),
    ("hidden_size", 64),
    ("num_hidden_layers", 1),
    ("num_attention_heads", 2),
    ("max_position_embeddings", 7),
    ("original_max_position_embeddings", 7),
    ("rope_theta", 50.0),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
    ("rope_scaling", {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "mscale": 2.0}),
    ("rope_scaling", {"rope_type": "default", "mrope_section": [1, 1]}),
    ("rope_parameters", {"rope_type": "linear", "factor": 3.0, "rope_theta": 77.0}),
    ("partial_rotary_factor", 0.5),
    ("tie_word_embeddings", False),
    ("tie_word_embeddings", True),
    ("clip_qkv", 1.0),
    ("logit_scale", 0.5),
    ("logits_scaling", 8.0),
    ("residual_multiplier", 0.5),
    ("embedding_multiplier", 2.0),
    ("final_logit_softcapping", 3.0),
    ("attn_logit_softcapping", 3.0),
    ("query_pre_attn_scalar", 5),
    ("norm_topk_prob", True),
    ("num_experts", 3),
    ("num_local_experts", 3),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}),
    ("per_layer_config", {"0": {"hidden_act": "relu"}}),
    ("pruned_heads", {"0": [0]}),
    ("use_bidirectional_attention", True),
    ("is_decoder", True),
    ("add_cross_attention", True),
    ("tie_encoder_decoder", True),
    ("position_embedding_type", "relative_key"),
    ("model_type", "gpt2"),
    ("model_type", "mistral"),
    ("attention_dropout", 0.5),
    ("hidden_dropout_prob", 0.1),
    ("torch_dtype", "float32"),
    ("pad_token_id", 1),
    ("eos_token_id", [1, 2]),
    ("a_new_key", 1),
]
OTHER: dict[str, Any] = {
    "null": None,
    "zero": 0,
    "negative": -1,
    "one": 1,
    "half": 0.5,
    "text": "text",
    "number as text": "8",
    "empty text": "",
    "list": [1, 2],
    "empty list": [],
    "table": {"a": 1},
    "empty table": {},
    "true": True,
    "false": False,
}


def paths(table: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in table.items():
        yield (*above, name)
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield from paths(value, (*above, name))


def changed(value: Any, rng: random.Random) -> tuple[str, Any]:
    """(what was done, another value); of a number mostly another number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice([("doubled", value * 2), ("one more", value + 1), ("half of it", value / 2)])
    if isinstance(value, bool) and rng.random() < 0.5:
        return "turned", not value
    kind = rng.choice(list(OTHER))
    return kind, copy.deepcopy(OTHER[kind])


def mutate(config: dict, rng: random.Random) -> Mutation:
    config = copy.deepcopy(config)
    if rng.random() < 0.25:
        name, value = rng.choice(ADDED)
        config[name] = copy.deepcopy(value)
        return Mutation((name,), "added", config)
    path = rng.choice(list(paths(config)))
    table = config
    for name in path[:-1]:
        table = table[name]
    if rng.random() < 0.25:
        del table[path[-1]]
        return Mutation(path, "absent", config)
    kind, table[path[-1]] = changed(table[path[-1]], rng)
    return Mutation(path, kind, config)
