"""What is wrong with a folder is one line, everything at once, before anything is written."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigmodel_jax import cli
from bigmodel_jax.core import params
from bigmodel_jax.models import gemma
from bigmodel_jax.pretrained import FAMILIES, folder, names
from bigmodel_jax.pretrained.family import spec_by_path
from bigmodel_jax.pretrained.kin import hint
from bigmodel_jax.pretrained.transfer import import_weights

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


@pytest.fixture
def llama(tmp_path):
    shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def change_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def change_weights(path: Path, change) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def break_architecture(path):
    change_config(path, architectures=["LlamaForCausalLMM"])


def break_activation(path):
    change_config(path, hidden_act="relu")


def break_vocabulary(path):
    change_config(path, vocab_size=97)


def break_config(path):
    (path / "config.json").write_text("{")


def lose_config(path):
    (path / "config.json").unlink()


def lose_a_field(path):
    config = json.loads((path / "config.json").read_text())
    del config["hidden_size"]
    (path / "config.json").write_text(json.dumps(config))


def lose_a_shard(path):
    shard = "model-00002-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))


def cut_short(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def only_a_pickle(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def lose_tensors(path):
    change_weights(path, lambda t: [t.pop("model.norm.weight"), t.pop("lm_head.weight")])


def add_a_tensor(path):
    change_weights(path, lambda t: t.update({"model.layers.7.mlp.up_proj.weight": np.zeros(2, np.float32)}))


def break_the_index(path):
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["a"]}))


def two_forms(path):
    shutil.copyfile(path / "model.safetensors", path / "model-1.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def one_tensor_in_two_shards(path):
    shards = {name: name for name in ("model.safetensors", "model-1.safetensors")}
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, path / "model-1.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


CASES = [
    (two_forms, ["it holds model.safetensors and model.safetensors.index.json with other files"]),
    (one_tensor_in_two_shards, ["model.norm.weight: two of its files hold it"]),
    (break_the_index, ["weight_map is no table"]),
    (break_architecture, ["LlamaForCausalLMM", "perhaps you meant 'LlamaForCausalLM'", "supported: "]),
    (break_activation, ["hidden_act = 'relu'", "'silu'"]),
    (break_vocabulary, ["embed_tokens.weight has shape (96, 32), expected (97, 32)", "lm_head.weight has shape"]),
    (break_config, ["config.json", "not JSON"]),
    (lose_config, ["config.json", "no such file"]),
    (lose_a_field, ["hidden_size", "is missing"]),
    (lose_a_shard, ["model-00002-of-00002.safetensors", "not there"]),
    (cut_short, ["model.safetensors", "cut short"]),
    (only_a_pickle, ["pytorch_model.bin is a pickle", "save_pretrained"]),
    (lose_tensors, ["model.norm.weight is missing", "lm_head.weight is missing"]),
    (add_a_tensor, ["model.layers.7.mlp.up_proj.weight has no place"]),
]


@pytest.mark.parametrize(("harm", "said"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_bad_folder_is_one_line_and_nothing_is_written(harm, said, llama, tmp_path, capsys):
    harm(llama)
    with pytest.raises(SystemExit) as stop:
        cli.main(["import", str(llama), "--run_dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert not [text for text in said if text not in error], error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama"]


def whole(family, spec, cfg, source, path) -> np.ndarray:
    """One parameter, all of it."""
    index = tuple(slice(None) for _ in spec[path].shape)
    return names.to_ours(family.rows, spec, cfg, source, path, [index], "float32")[index]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_parameter_has_exactly_one_row(architecture):
    family = FAMILIES[architecture]
    paths = [path for row in family.rows for path in row.paths]
    assert len(paths) == len(set(paths))


def stored_bytes(where):
    """(what the index of a sharded folder says, what the tensors in its files have)"""
    index = json.loads((where / "model.safetensors.index.json").read_text())
    files = [load_file(where / name) for name in {*index["weight_map"].values()}]
    return index["metadata"]["total_size"], sum(x.nbytes for tensors in files for x in tensors.values())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_index_of_quantised_shards_counts_the_bytes_that_they_hold(kind, monkeypatch, tmp_path):
    family, cfg = folder.read_config(FIXTURES / "llama")
    source, spec = folder.open_weights(FIXTURES / "llama"), spec_by_path(cfg)
    monkeypatch.setattr(folder, "SHARD_BYTES", 20_000)
    folder.save_params(family, cfg, {p: whole(family, spec, cfg, source, p) for p in spec}, tmp_path, kind=kind)
    said, held = stored_bytes(tmp_path)
    assert said == held


def test_a_large_export_is_sharded_and_read_back(monkeypatch, tmp_path):
    family, cfg = folder.read_config(FIXTURES / "llama")
    source = folder.open_weights(FIXTURES / "llama")
    spec = spec_by_path(cfg)
    flat = {path: whole(family, spec, cfg, source, path) for path in spec}
    monkeypatch.setattr(folder, "SHARD_BYTES", 20_000)
    folder.save_params(family, cfg, flat, tmp_path)
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    assert all(p.stat().st_size < 40_000 for p in files)
    said, held = stored_bytes(tmp_path)
    assert said == held
    again = folder.open_weights(tmp_path)
    assert set(again) == set(source)
    assert all(np.array_equal(again[n].read(), source[n].read()) for n in source)


def test_only_what_a_part_needs_is_read():
    """A part of one layer reads the tensors of that layer, once for all parts, and of these only
    the rows asked for."""
    family, cfg = folder.read_config(FIXTURES / "llama")
    spec, source, reads = spec_by_path(cfg), folder.open_weights(FIXTURES / "llama"), []

    def counted(name, tensor):
        return tensor._replace(read=lambda: [reads.append(name), tensor.read()][1])

    counting = {name: counted(name, tensor) for name, tensor in source.items()}
    path = "layers/mlp/up"
    full = whole(family, spec, cfg, source, path)
    first, second = (slice(1, 2), slice(0, 16), slice(None)), (slice(1, 2), slice(16, None), slice(None))
    found = names.to_ours(family.rows, spec, cfg, counting, path, [first, second], "bfloat16")
    assert reads == ["model.layers.1.mlp.up_proj.weight"]
    for index, part in found.items():
        np.testing.assert_array_equal(part, full[index].astype(part.dtype))


def test_bfloat16_files_are_read(tmp_path):
    import ml_dtypes

    shutil.copytree(FIXTURES / "llama", tmp_path, dirs_exist_ok=True)
    full = load_file(tmp_path / "model.safetensors")
    save_file({n: x.astype(ml_dtypes.bfloat16) for n, x in full.items()}, tmp_path / "model.safetensors")
    source = folder.open_weights(tmp_path)
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(
        source[name].read().astype(np.float32), full[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    )


@pytest.mark.parametrize("names_of", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_that_sees(names_of, tmp_path, caplog):
    """A Gemma 3 with images is published in two forms. Both give its text model, and a message
    names the rest."""
    family, cfg = folder.read_config(FIXTURES / "gemma3")
    config = json.loads((FIXTURES / "gemma3" / "config.json").read_text())
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    text = load_file(FIXTURES / "gemma3" / "model.safetensors")
    vision = {"vision_tower.vision_model.post_layernorm.bias": np.zeros(4, np.float32)}
    vision |= {f"multi_modal_projector.{n}": np.zeros(2, np.float32) for n in "ab"}
    tensors = {n.replace("model.", names_of, 1): x for n, x in text.items() if n != "lm_head.weight"} | vision
    save_file(tensors, tmp_path / "model.safetensors")
    found = folder.read_config(tmp_path)
    assert found[1] == cfg
    where = dict.fromkeys(spec_by_path(cfg), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    ours = folder.load_params(*found, folder.open_weights(tmp_path), where, "float32")
    theirs = folder.load_params(family, cfg, folder.open_weights(FIXTURES / "gemma3"), where, "float32")
    for path, x in theirs.items():
        np.testing.assert_array_equal(ours[path], x, path)
    assert (
        "left out, since Gemma3Config has no such part: multi_modal_projector (2 tensors), vision_tower (1 "
        in caplog.text
    )


def test_what_a_model_that_sees_leaves_to_its_config_class():
    """google/gemma-3-4b-it says so little of its text model. The sizes are the published ones."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    cfg = FAMILIES["Gemma3ForConditionalGeneration"].from_hf({"text_config": text})
    known = gemma.PRESETS["gemma-3-4b"]
    assert dataclasses.replace(cfg, vocab_size=known.vocab_size) == known


def test_the_spec_of_a_family_is_covered_by_its_table():
    """`check` would find a gap at import. The test checks every family's smallest config."""
    for family in FAMILIES.values():
        if not hasattr(family.config, "tiny"):
            continue
        spec = set(params.paths(family.config.tiny().make().spec))
        rows = {path for row in family.rows for path in row.paths}
        # One config class may serve several architectures, each with a head of its own.
        others = {path for f in FAMILIES.values() if f.config is family.config for row in f.rows for path in row.paths}
        assert spec <= rows | others, family.architecture


def test_the_first_layer_is_a_number_or_a_name_of_the_config():
    for family in FAMILIES.values():
        fields = {f.name for f in dataclasses.fields(family.config)}
        named = {row.start for row in family.rows if isinstance(row.start, str)}
        unknown = {name for name in named if name not in fields and not hasattr(family.config, name)}
        assert not unknown, f"{family.architecture}: {family.config.__name__} has no {unknown}"


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("Qwen2MoeForCausalLM", "nearest in kind: 'Qwen3MoeForCausalLM'"),
        ("ErnieForSequenceClassification", "nearest in kind: 'BertForSequenceClassification'"),
        ("PegasusForConditionalGeneration", "nearest in kind: 'MarianMTModel'"),
        ("LlamaForSequenceClassification", "nearest in kind: 'LlamaForCausalLM'"),
        ("LLamaForCausalLM", "perhaps you meant 'LlamaForCausalLM'"),
        ("Qwen9ForCausalLM", ""),
        ("Mamba2ForCausalLM", ""),  # in spelling it is nearest to Gemma2ForCausalLM
        ("Mask2FormerForUniversalSegmentation", ""),
    ],
)
def test_the_hint_names_what_is_nearest_in_kind(architecture, said):
    assert hint(architecture, FAMILIES) == (f" ({said})" if said else "")


def placed(path: Path) -> dict:
    family, cfg = folder.read_config(path)
    where = dict.fromkeys(spec_by_path(cfg), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return folder.load_params(family, cfg, folder.open_weights(path), where, "float32")


def test_an_untied_t5_saved_by_transformers_5(tmp_path):
    """transformers ties the head when it saves: the file has no head, and the outputs have no
    scale."""
    shutil.copytree(FIXTURES / "t5_v11", tmp_path, dirs_exist_ok=True)
    change_config(tmp_path, tie_word_embeddings=True, scale_decoder_outputs=False)
    change_weights(tmp_path, lambda t: t.pop("lm_head.weight"))
    found = placed(tmp_path)
    np.testing.assert_array_equal(found["head/table"], found["embed/table"])


def test_a_tensor_under_two_names_is_refused(tmp_path):
    shutil.copytree(FIXTURES / "bert", tmp_path, dirs_exist_ok=True)
    name = "bert.embeddings.LayerNorm."
    change_weights(tmp_path, lambda t: t.update({f"{name}gamma": 2 * t[f"{name}weight"]}))
    with pytest.raises(ValueError, match=r"the files hold bert.embeddings.LayerNorm.weight twice"):
        placed(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: np.full_like(x, np.nan), "hold values that are not finite"),
        (lambda x: x * np.float32(np.inf), "hold values that are not finite"),
        (lambda x: x.astype(np.int32), "holds int32, which are no weights"),
        (lambda x: x != 0, "holds bool, which are no weights"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, spoil, said):
    source = tmp_path / "hf"
    shutil.copytree(Path(__file__).parents[1] / "parity" / "fixtures" / "llama", source)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: spoil(tensors[name])}, source / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        import_weights(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_a_shard_outside_the_folder_is_not_read(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="is no file of this folder, and is not read"):
        folder.open_weights(tmp_path)
