"""Writes what transformers' config classes take for each key that a config.json leaves out.

Runs in a Python of its own that has transformers, and imports nothing of the project:

    python tests/pretrained/make_class_defaults.py

fixtures/class_defaults.json: by parity fixture, "absent" maps each key (dotted where it lies in a
table) to the value that the class has without it, with every other key of the fixture's config.json
in place; "minimal" is the fixture's config.json with the keys of SIZES alone, and "written_out" the
class's own account of it.
"""

import copy
import json
from pathlib import Path

import transformers
from huggingface_hub.errors import StrictDataclassError

HERE = Path(__file__).parent
PARITY = HERE.parent / "parity" / "fixtures"
OUTPUT = HERE / "fixtures" / "class_defaults.json"
ABOUT_THE_FILE = {"architectures", "model_type", "transformers_version", "dtype", "_name_or_path"}
# What makes a model of one size or another: nobody means the class's default by leaving it out.
SIZES = """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings head_dim
    num_key_value_heads n_embd n_layer n_head n_positions d_model d_kv d_ff d_inner num_heads num_layers
    dim hidden_dim n_layers n_heads
    encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim
    moe_intermediate_size n_routed_experts n_shared_experts kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim
    v_head_dim n_group topk_group first_k_dense_replace num_experts_per_tok num_experts num_local_experts image_size
    patch_size depths hidden_sizes embedding_size projection_dim position_buckets"""
TOWERS = ("text_config", "vision_config", "encoder_config")


def flat(table: dict, prefix: str = "") -> dict:
    """The table by dotted key; only the towers' tables are opened."""
    out = {}
    for key, value in table.items():
        out |= flat(value, f"{prefix}{key}.") if key in TOWERS else {prefix + key: value}
    return {key: value for key, value in out.items() if key.rpartition(".")[2] not in ABOUT_THE_FILE}


def without(table: dict, path: str) -> dict:
    table = copy.deepcopy(table)
    *towers, key = path.split(".")
    inside = table
    for tower in towers:
        inside = inside[tower]
    inside.pop(key, None)
    return table


def only_sizes(table: dict) -> dict:
    kept = {}
    for key, value in table.items():
        if key in TOWERS:
            kept[key] = only_sizes(value)
        elif key in (*SIZES.split(), "architectures", "model_type"):
            kept[key] = value
    return kept


def account(table: dict) -> dict:
    """Every key as the class has it after reading `table`."""
    config_class = getattr(transformers, table["architectures"][0]).config_class
    return json.loads(config_class.from_dict(copy.deepcopy(table)).to_json_string(use_diff=False))


def defaults_of(folder: Path) -> dict:
    given = json.loads((folder / "config.json").read_text())
    absent = {}
    for key in sorted(flat(given) | flat(account(given))):
        try:
            absent[key] = flat(account(without(given, key))).get(key)
        except (StrictDataclassError, ValueError):
            continue  # the class itself refuses the others without it
    minimal = only_sizes(given)
    return {"absent": absent, "minimal": minimal, "written_out": account(minimal)}


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = {}
    for folder in sorted(PARITY.iterdir()):
        config = folder / "config.json"
        if config.is_file() and hasattr(transformers, (json.loads(config.read_text()).get("architectures") or [""])[0]):
            found[folder.name] = defaults_of(folder)
    made = {"transformers": transformers.__version__, "families": found}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
