"""A key that a config.json leaves out means what transformers' config class takes for it, in every
family.

fixtures/class_defaults.json is transformers' own account, written by make_class_defaults.py.
"""

import copy
import json
from pathlib import Path

import pytest

from bigmodel_jax.pretrained import FAMILIES

PARITY = Path(__file__).parents[1] / "parity" / "fixtures"
FOUND = json.loads((Path(__file__).parent / "fixtures" / "class_defaults.json").read_text())["families"]

every_family = pytest.mark.parametrize("name", FOUND)


def given(name: str) -> dict:
    return json.loads((PARITY / name / "config.json").read_text())


def changed(table: dict, path: str, *value) -> dict:
    """The table without a dotted key, or with another value for it."""
    table = copy.deepcopy(table)
    *above, key = path.split(".")
    inside = table
    for name in above:
        inside = inside[name]
    inside.pop(key, None)
    if value:
        (inside[key],) = value
    return table


def outcome(table: dict):
    """What is made of a config.json: our config, a refusal, or the key without which there is
    none."""
    try:
        return FAMILIES[table["architectures"][0]].from_hf(table)
    except KeyError as error:
        return f"{error} is missing"
    except ValueError:
        return "refused"


@every_family
def test_an_absent_key_is_the_class_default(name):
    """The test removes one key of the config file at a time. If the key is a size, the import may
    ask for it instead."""
    for key, value in FOUND[name]["absent"].items():
        absent = outcome(changed(given(name), key))
        if not str(absent).endswith("is missing"):
            assert absent == outcome(changed(given(name), key, value)), key


@every_family
def test_sizes_alone_are_the_class_with_these_sizes(name):
    """A config with nothing but architectures, model_type and sizes equals one with every key of
    the class."""
    minimal, written_out = FOUND[name]["minimal"], FOUND[name]["written_out"]
    written_out = written_out | {"architectures": minimal["architectures"]}
    assert outcome(minimal) == outcome(written_out)
    assert "is missing" not in str(outcome(minimal))


def test_the_text_of_a_model_that_sees_has_the_same_defaults():
    minimal = FOUND["gemma3"]["minimal"]
    alone = FAMILIES["Gemma3ForCausalLM"].from_hf(minimal)
    assert FAMILIES["Gemma3ForConditionalGeneration"].from_hf({"text_config": minimal}) == alone


@pytest.mark.parametrize("said", [{"rope_scaling": None}, {"rope_parameters": None}, {}])
def test_a_gpt_oss_that_says_nothing_of_rotary_positions_has_the_published_ones(said):
    table = changed(given("gpt_oss"), "rope_parameters") | said
    scaling = FAMILIES["GptOssForCausalLM"].from_hf(table).rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_max_seq_len, scaling.truncate) == ("yarn", 32.0, 4096, False)


def test_a_gpt_oss_without_scaling_says_so():
    family = FAMILIES["GptOssForCausalLM"]
    cfg = family.from_hf(given("gpt_oss") | {"rope_parameters": {"rope_type": "default", "rope_theta": 333.0}})
    written = family.to_hf(cfg)
    assert written["rope_scaling"] == {"rope_type": "default"}
    assert family.from_hf(written) == cfg


@pytest.mark.parametrize(("key", "value"), [("in_channels", 4), ("out_channels", 8), ("cross_attention_dim", 1152)])
def test_a_pixart_has_the_defaults_of_diffusers(key, value):
    """The defaults come from the signature of PixArtTransformer2DModel. The sizes are published
    ones, so that absent keys may fit."""
    family = FAMILIES["PixArtTransformer2DModel"]
    table = json.loads((PARITY / "pixart" / "config.json").read_text())
    published = {"in_channels": 4, "out_channels": 8, "num_attention_heads": 16, "attention_head_dim": 72}
    table |= published | {"cross_attention_dim": 1152}
    assert family.from_hf(changed(table, key)) == family.from_hf(changed(table, key, value))
    with pytest.raises(ValueError, match="is not supported"):
        family.from_hf(changed(table | {"in_channels": 3, "attention_head_dim": 8}, key))
