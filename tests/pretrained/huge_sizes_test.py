"""Sizes of a header that no file holds: one line, before anything of that size is made."""

import functools
import json
import shutil

import pytest

from bigmodel_jax.pretrained import config_keys, folder, gguf
from gguf_test import write
from mutations_test import FIXTURES, FOLDERS, outcome

HUGE = 10**9
SIZES = [
    *(("llama", name) for name in ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "head_dim")),
    *(("bert", name) for name in ("num_attention_heads", "num_hidden_layers", "max_position_embeddings")),
    *(("deepseek", name) for name in ("n_routed_experts", "first_k_dense_replace", "kv_lora_rank")),
    *(("qwen3_moe", name) for name in ("num_local_experts", "moe_intermediate_size")),
    *(("gemma3", "num_hidden_layers"), ("gpt_oss", "num_hidden_layers"), ("qwen2", "num_hidden_layers")),
    *(("t5", "num_decoder_layers"), ("clip", "text_config.num_hidden_layers"), ("xlnet", "n_layer")),
    *(("resnet", "depths"), ("resnet", "num_channels"), ("efficientnet", "repeats"), ("efficientnet", "image_shape")),
    *(
        ("dit", "num_heads"),
        ("opus_mt", "encoder_layers"),
        ("vit", "image_size"),
        ("siglip", "vision_config.patch_size"),
    ),
]


def places(config: dict, above: tuple = ()):
    """Paths of the keys of config.json that are sizes."""
    kinds = config_keys.COUNT, config_keys.COUNT_OR_NULL, config_keys.DEPTH, config_keys.DEPTH_OR_NULL
    lists = config_keys.COUNTS, config_keys.BLOCKS, config_keys.SIZE, config_keys.SHAPE, config_keys.DEPTH_OR_ZERO
    for name, value in config.items():
        if isinstance(value, dict):
            yield from places(value, (*above, name))
        elif config_keys.KINDS.get(name) in (*kinds, *lists) and value is not None:
            yield (*above, name)


def opened(tmp_path, name: str, place: tuple, value: int):
    """("refused", the line) or ("read", None) of a fixture with one size changed."""
    config = json.loads((FIXTURES / name / "config.json").read_text())
    table = functools.reduce(dict.__getitem__, place[:-1], config)
    old = table[place[-1]]
    table[place[-1]] = [value, *old[1:]] if isinstance(old, list) else value
    shutil.copytree(FIXTURES / name, tmp_path / name, dirs_exist_ok=True)
    (tmp_path / name / "config.json").write_text(json.dumps(config))

    def read():
        family, cfg = folder.read_config(tmp_path / name)
        folder.check_weights(family, cfg, folder.open_weights(tmp_path / name))

    return outcome(read)


@pytest.mark.parametrize("value", [HUGE, 10**18, 9_999])
@pytest.mark.parametrize(("name", "key"), SIZES)
def test_a_size_that_the_files_do_not_hold_is_one_short_line(tmp_path, name, key, value):
    what, said = opened(tmp_path, name, tuple(key.split(".")), value)
    # No tensor of an EfficientNet holds the size of its images.
    assert what == "refused" or (key == "image_shape" and value < 2**31), said
    assert what == "read" or len(said) < 20_000


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FOLDERS)
def test_every_size_of_every_family(tmp_path, name):
    for place in places(json.loads((FIXTURES / name / "config.json").read_text())):
        for value in (HUGE, 10**18, 9_999):
            what, said = opened(tmp_path, name, place, value)
            assert what in ("read", "refused"), (place, value, said)
            assert what == "read" or len(said) < 20_000, (place, value)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "feed_forward_length", "attention.head_count"])
def test_a_size_in_a_gguf_that_its_tensors_do_not_hold_is_one_short_line(tmp_path, key):
    path = tmp_path / "m.gguf"

    def enlarge(writer):
        writer.kv_data[0][f"llama.{key}"].value = HUGE

    write(path, more=enlarge)

    def read():
        found = gguf.open_gguf(path)
        folder.check_weights(found.family, found.config, found.source)

    what, said = outcome(read)
    assert what == "refused"
    assert len(said) < 20_000


def test_more_missing_tensors_than_anyone_reads_are_counted(tmp_path):
    what, said = opened(tmp_path, "llama", ("num_hidden_layers",), 500)
    assert what == "refused"
    assert "model.layers.2.input_layernorm.weight is missing" in said
    assert said.endswith("more")
