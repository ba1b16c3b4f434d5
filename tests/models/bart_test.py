"""BART's own: unread rows of positions, a bias that no step changes, texts that begin with a token,
and older files."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import BartConfig
from bigmodel_jax.pretrained import FAMILIES, folder
from bigmodel_jax.pretrained.family import OtherArchitecture
from bigmodel_jax.pretrained.transfer import export_weights, import_weights

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "bart"
TINY = BartConfig.tiny()
BART = FAMILIES["BartForConditionalGeneration"]


def test_the_first_two_rows_of_a_position_table_are_never_read_and_each_side_reads_its_own():
    model = TINY.make()
    tree = params.init(model.spec, jax.random.key(0))
    batch = {"encoder_tokens": jnp.arange(9)[None], "tokens": jnp.arange(5)[None]}
    gradients = jax.jit(jax.grad(lambda tree: model.apply(tree, batch).value.var()))(tree)
    for side, length in (("encoder", 9), ("decoder", 5)):
        read = np.abs(gradients[f"{side}_positions"]).sum(1) > 0
        assert read.tolist() == [False] * 2 + [True] * length + [False] * (TINY.max_seq_len - length)


def test_the_bias_is_a_constant_whose_values_move_the_logits():
    model = TINY.make()
    assert params.paths(model.spec)["logits_bias"].kind == "constant"
    tree = params.init(model.spec, jax.random.key(0))
    batch = {"encoder_tokens": jnp.arange(9)[None], "tokens": jnp.arange(5)[None]}
    bias = jnp.arange(64.0)
    moved = model.apply(tree | {"logits_bias": bias}, batch).value - model.apply(tree, batch).value
    np.testing.assert_allclose(moved, np.broadcast_to(bias, moved.shape), atol=1e-4)


def test_what_begins_a_text():
    model = dataclasses.replace(TINY, bos_token_id=5, decoder_start_token_id=7).make()
    assert (model.decoder_starts, model.encoded([8, 9], 2)) == ((7, 5), [5, 8, 9, 2])
    model = dataclasses.replace(TINY, text_bos=False, forced_bos=False).make()
    assert (model.decoder_starts, model.encoded([8, 9], 2)) == ((2,), [8, 9, 2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_bos": False}, r"model\.forced_bos = True needs model\.text_bos = True"),
        ({"bos_token_id": 64}, r"model\.bos_token_id = 64"),
    ],
)
def test_impossible_configs_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TINY, **changes).validate(ParallelConfig())


@pytest.mark.parametrize("changes", [{"logits_bias": False}, {"text_bos": False, "forced_bos": False}])
def test_fields_without_a_published_form_are_refused(changes):
    with pytest.raises(ValueError, match=f"model.{next(iter(changes))} = False: a published BART has it"):
        BART.to_hf(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"forced_bos_token_id": 9},
            "forced_bos_token_id = 9 is not supported; supported: null, or the bos_token_id 0",
        ),
        ({"normalize_before": True}, "normalize_before = True is not supported"),
        ({"normalize_embedding": False}, "normalize_embedding = False is not supported"),
        ({"decoder_ffn_dim": 9}, "decoder_ffn_dim = 9 is not supported"),
    ],
)
def test_files_of_other_mathematics_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        BART.from_hf(BART.to_hf(TINY) | keys)


@pytest.mark.parametrize(("found", "forced"), [({"forced_bos_token_id": 3}, True), ({"num_beams": 4}, False)])
def test_generation_config_says_what_is_forced_where_there_is_one(found, forced, tmp_path):
    shutil.copyfile(FIXTURE / "config.json", tmp_path / "config.json")
    assert folder.read_config(tmp_path)[1].forced_bos
    (tmp_path / "generation_config.json").write_text(json.dumps(found))
    assert folder.read_config(tmp_path)[1].forced_bos is forced


def test_an_older_file_forces_by_another_key():
    older = BART.to_hf(TINY) | {"forced_bos_token_id": None}
    assert not BART.from_hf(older).forced_bos
    assert BART.from_hf(older | {"force_bos_token_to_be_generated": True}).forced_bos


def test_a_file_without_the_head_is_a_model_whose_bias_is_zero(tmp_path):
    """Facebook's bart-base and bart-large are such files: names lack "model.", and the logits' bias
    is missing."""
    tensors = load_file(FIXTURE / "model.safetensors")
    bare = {name.removeprefix("model."): x for name, x in tensors.items() if name != "final_logits_bias"}
    save_file(bare, tmp_path / "model.safetensors")
    config = json.loads((FIXTURE / "config.json").read_text()) | {"architectures": ["BartModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    import_weights(tmp_path, tmp_path / "run")
    config = import_weights(FIXTURE, tmp_path / "other")
    for run, zero in (("run", True), ("other", False)):
        assert export_weights(config, tmp_path / run, tmp_path / f"{run}_out").family.architecture == BART.architecture
        out = load_file(tmp_path / f"{run}_out" / "model.safetensors")
        assert out.pop("final_logits_bias").any() != zero
        assert {name: x.tobytes() for name, x in out.items()} == {
            name: x.tobytes() for name, x in tensors.items() if name != "final_logits_bias"
        }
    with pytest.raises(OtherArchitecture):
        FAMILIES["BartModel"].to_hf(TINY)
