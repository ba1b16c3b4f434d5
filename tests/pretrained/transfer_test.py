"""Published weights into a run and out again: on meshes, in bfloat16, into fine-tuning."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer as Model
from tokenizers import decoders, models, pre_tokenizers

from bigmodel_jax import cli, config_file
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.data.sources.sources import TextFiles
from bigmodel_jax.data.tokenizers import tokenizers
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer, make_bytes
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.transfer import export_weights, family_of, import_weights, open_source
from bigmodel_jax.training.beginning import begin
from bigmodel_jax.training.checks import check_sample
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.saved import _chat_prompt, load_weights

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "llama"


def tensors(path: Path) -> dict[str, bytes]:
    return {name: t.read().tobytes() for name, t in folder.open_weights(path).items()}


def small_tokenizer() -> tokenizers.Tokenizer:
    """ASCII's printable characters and the separator: as many ids as the fixture's model has
    rows."""
    vocab = {c: i + 1 for i, c in enumerate(tokenizers.byte_characters()[32:127])}
    model = tokenizers._byte_level(models.BPE(vocab={"<|endoftext|>": 0} | vocab, merges=[]))
    model.add_special_tokens(["<|endoftext|>"])
    return tokenizers.Tokenizer(model)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    source, run = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("runs") / "llama"
    shutil.copytree(FIXTURE, source, dirs_exist_ok=True)
    small_tokenizer().save(source / "tokenizer.json")
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    import_weights(source, run)
    return source, run


def test_out_again_is_bit_for_bit_what_came_in(imported, tmp_path):
    source, run = imported
    export_weights(config_file.load(run), run, tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(source)
    assert folder.read_config(tmp_path / "out") == folder.read_config(source)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


@pytest.mark.slow
def test_weights_go_straight_to_their_shards(imported, tmp_path):
    """With FSDP x TP on 8 devices, each device holds the part that the rules say, and the values
    are the same."""
    source, run = imported
    parallel = ParallelConfig(data=2, fsdp=2, tensor=2)
    config = import_weights(source, tmp_path / "run", parallel=parallel)
    mesh = sharding.make_mesh(parallel)
    placed, _ = load_weights(config, tmp_path / "run", mesh)
    q = params.paths(placed)["layers/attn/q"]
    assert q.addressable_shards[0].data.shape == (2, 16, 2, 8)
    one, _ = load_weights(config_file.load(run), run, sharding.make_mesh(ParallelConfig(data=-1)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), jax.device_get(one))


def test_an_export_says_how_its_pictures_were_cut(imported, tmp_path):
    _, run = imported
    data = ImageData(image_size=28, normalise="given", mean=(0.5,), spread=(0.25,))
    export_weights(dataclasses.replace(config_file.load(run), data=data), run, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (found["size"], found["crop_size"]) == ({"shortest_edge": 32}, {"height": 28, "width": 28})
    assert (found["image_mean"], found["image_std"], found["do_normalize"]) == ([0.5] * 3, [0.25] * 3, True)


@pytest.mark.slow
def test_bfloat16_halves_the_export(imported, tmp_path):
    _source, run = imported
    export_weights(config_file.load(run), run, tmp_path / "half", dtype="bfloat16")
    found = folder.open_weights(tmp_path / "half")
    assert {str(t.dtype) for t in found.values()} == {"bfloat16"}
    import_weights(tmp_path / "half", tmp_path / "run", dtype="bfloat16")
    again, _ = load_weights(config_file.load(tmp_path / "run"), tmp_path / "run", sharding.make_mesh(ParallelConfig()))
    assert {str(x.dtype) for x in jax.tree.leaves(again)} == {"bfloat16"}


def config_of(run: Path, **model):
    config = config_file.load(run)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        train=dataclasses.replace(config.train, init_from=str(run)),
        parallel=ParallelConfig(data=-1),
    )


@pytest.mark.slow
def test_a_run_starts_from_imported_weights(imported):
    _, run = imported
    config = config_of(run)
    mesh = sharding.make_mesh(config.parallel)
    state, _, missing, *_ = fresh_state(config, mesh)
    assert missing == []
    want, _ = load_weights(config_file.load(run), run, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(want))


@pytest.mark.slow
def test_what_the_source_lacks_is_named_and_starts_fresh(imported):
    _, run = imported
    config = config_of(run, qk_norm=True)
    state, _, missing, *_ = fresh_state(config, sharding.make_mesh(config.parallel))
    assert sorted(missing) == ["layers/attn/k_norm/scale", "layers/attn/q_norm/scale"]
    assert (np.asarray(params.paths(state.params)["layers/attn/q_norm/scale"]) == 1).all()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("mlp_dim", 64, "other shapes: layers/mlp/"), ("vocab_size", 40, "other shapes: embed/table")],
)
def test_weights_of_another_shape_are_refused(imported, field, value, said):
    _, run = imported
    config = config_of(run, **{field: value})
    with pytest.raises(ValueError, match=rf"train\.init_from = .* holds {said}"):
        fresh_state(config, sharding.make_mesh(config.parallel))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [ParallelConfig(data=1), ParallelConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_tables_of_a_larger_vocabulary_have_new_rows_at_the_mean_of_the_old(imported, parallel, capsys):
    _, run = imported
    config = config_of(run, vocab_size=100, pad_vocab=8)
    config = dataclasses.replace(config, parallel=parallel)
    mesh = sharding.make_mesh(parallel, jax.devices()[: 1 if parallel.tensor == 1 else 8])
    fresh = begin(config, mesh, Console())
    table = np.asarray(params.paths(fresh.state.params)["embed/table"])
    old, _ = load_weights(config_file.load(run), run, mesh)
    old = np.asarray(old["embed"]["table"])
    assert table.shape == (104, old.shape[1])
    np.testing.assert_array_equal(table[: len(old)], old)
    np.testing.assert_allclose(table[len(old) : 100], np.tile(old.mean(0), (100 - len(old), 1)), atol=1e-6)
    assert not table[100:].any()
    assert f"embed/table: {100 - len(old)} rows more, at the mean of its {len(old)}" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(imported, tmp_path):
    _, run = imported
    config = config_of(run)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(tmp_path)))
    with pytest.raises(ValueError, match=r"train\.init_from = .* is not a run's folder"):
        fresh_state(config, sharding.make_mesh(config.parallel))


def test_an_existing_folder_is_left_alone(imported, tmp_path, capsys):
    source, run = imported
    before = sorted(p.name for p in run.iterdir())
    for args in (["import", str(source), "--run_dir", str(run)], ["export", str(run), str(source)]):
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
        assert stop.value.code == 2
        assert "exists and is not empty" in capsys.readouterr().err
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_config_without_a_published_form_is_refused():
    with pytest.raises(ValueError, match=r"model: LlamaConfig .* no Hugging Face form|use MistralConfig"):
        family_of(dataclasses.replace(LlamaConfig.tiny(), window=4))


@pytest.mark.slow
def test_chat_needs_a_template_and_uses_it(imported, tmp_path, capsys):
    _source, run = imported
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["tokenizer"]["path"].endswith("tokenizer.json")
    cli.main(["generate", str(run), "--prompt", "hi", "--chat", "True", "--max_tokens", "3"])
    assert not capsys.readouterr().out.startswith("hi")
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit):
        cli.main(["generate", str(bare), "--prompt", "hi", "--chat", "True"])
    assert "holds no chat_template.jinja" in capsys.readouterr().err


@pytest.mark.few("parallel1")
@pytest.mark.slow
@pytest.mark.parametrize("parallel", [ParallelConfig(data=1), ParallelConfig(data=2, tensor=4)])
def test_padded_tables_come_in_with_zeros_and_go_out_as_published(imported, tmp_path, parallel):
    source, run = imported
    parallel = dataclasses.replace(parallel, data=-1)
    config = import_weights(source, tmp_path / "run", parallel=parallel, pad_vocab=128)
    tree, _ = load_weights(config, tmp_path / "run", sharding.make_mesh(parallel))
    plain, _ = load_weights(config_file.load(run), run, sharding.make_mesh(ParallelConfig()))
    rows = config.model.vocab_size
    for path in ("embed/table", "head/table"):
        padded, published = np.asarray(params.paths(tree)[path]), np.asarray(params.paths(plain)[path])
        assert len(padded) == 128 > rows
        np.testing.assert_array_equal(padded[:rows], published)
        assert not padded[rows:].any()
    export_weights(config, tmp_path / "run", tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(source)
    assert folder.read_config(tmp_path / "out") == folder.read_config(source)


@pytest.mark.slow
def test_a_run_starts_from_tables_with_another_padding(imported, tmp_path):
    """The test goes from a run without padding to one with it, and back."""
    source, run = imported
    import_weights(source, tmp_path / "padded", pad_vocab=128)
    found = {}
    for start, multiple, parallel in ((run, 128, ParallelConfig(tensor=4)), (tmp_path / "padded", 1, ParallelConfig())):
        config = dataclasses.replace(config_of(start, pad_vocab=multiple), parallel=parallel)
        state, _, missing, *_ = fresh_state(config, sharding.make_mesh(parallel))
        assert missing == []
        found[multiple] = table = state.params["embed"]["table"]
        assert table.sharding.shard_shape(table.shape)[0] == len(table) // parallel.tensor
    rows = config.model.vocab_size
    assert (len(found[128]), len(found[1])) == (128, rows)
    np.testing.assert_array_equal(found[128][:rows], found[1])
    assert not np.asarray(found[128][rows:]).any()


def test_a_package_that_holds_a_pickle_is_refused_before_it_is_fetched(tmp_path, capsys):
    for name, said in (("efficientnet-lite0", "holds its weights as a pickle"), ("efficientnet-lite", "minilm-l6")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["import", name, "--run_dir", str(tmp_path / "run")])
        error = capsys.readouterr().err
        assert (stop.value.code, len(error.strip().splitlines())) == (2, 1)
        assert said in error
        assert "perhaps you meant" not in error


def published(folder: Path) -> Path:
    """A folder whose ids are nobody's defaults: three stops, a bos of its own, a pad, and sampling
    options."""
    shutil.copytree(FIXTURE, folder)
    vocab = {chr(n): n - 33 for n in range(33, 123)}  # 90 characters; the model has 96 rows
    own = Model(models.BPE(vocab=vocab, merges=[]))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own.add_special_tokens(["<s>", "</s>", "<stop>", "<pad>"])
    own.save(str(folder / "tokenizer.json"))
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | {"bos_token_id": 3, "eos_token_id": [5, 7], "pad_token_id": 9}))
    generation = {"bos_token_id": 3, "eos_token_id": [5, 7, 11], "pad_token_id": 9, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    names = {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "<stop>", "add_bos_token": True}
    about = {"tokenizer_class": "LlamaTokenizer", **names, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def test_special_tokens_are_kept_from_source_to_run_to_export(tmp_path):
    source, run, out = published(tmp_path / "hf"), tmp_path / "run", tmp_path / "out"
    import_weights(source, run)
    own = load_tokenizer(run / "tokenizer.json")
    stop, bos = own.model.token_to_id("<stop>"), own.model.token_to_id("<s>")
    assert (own.start, own.stops) == (bos, (stop, 5, 7, 11, own.separator))
    export_weights(config_file.load(run), run, out)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert (
            json.loads((out / "config.json").read_text())[name]
            == json.loads((source / "config.json").read_text())[name]
        )
    assert (out / "generation_config.json").exists()
    assert json.loads((out / "generation_config.json").read_text()) == json.loads(
        (source / "generation_config.json").read_text()
    )
    about = json.loads((out / "tokenizer_config.json").read_text())
    assert about["bos_token"] == {"__type": "AddedToken", "content": "<s>"}
    assert (about["eos_token"], about["add_bos_token"]) == ("<stop>", True)
    assert (out / "chat_template.jinja").read_text() == (run / "chat_template.jinja").read_text()


def test_a_chat_template_is_found_in_each_file_that_may_hold_it(tmp_path):
    source = published(tmp_path / "hf")
    assert open_source(source).chat_template == "{{ bos_token }}{{ messages[0].content }}"
    (source / "chat_template.json").write_text('{"chat_template": "of a processor"}')
    assert open_source(source).chat_template == "of a processor"
    (source / "chat_template.jinja").write_text("of a file")
    assert open_source(source).chat_template == "of a file"


def test_rows_evaluation_and_generation_begin_with_the_same_token(tmp_path):
    run = tmp_path / "run"
    config = import_weights(published(tmp_path / "hf"), run)
    (tmp_path / "text.txt").write_text("abc")
    source = TextFiles(str(tmp_path / "text.txt"), str(tmp_path / "text.txt"))
    data = dataclasses.replace(config.data, source=source, seq_len=8, cache_dir=str(tmp_path / "cache"))
    own = data.open_tokenizer()
    bos = own.model.token_to_id("<s>")
    for split in ("train", "validation"):
        batch = data.open(split).batch(np.array([0]), None)
        assert batch["tokens"][0, :4].tolist() == [bos, *own.encode("abc")]
        assert batch["targets"][0, 3] == own.separator
    assert check_sample(config, SampleConfig(prompt="abc", max_tokens=1), own) == [bos, *own.encode("abc")]
    assert _chat_prompt(run, "abc", own) == [bos, *own.encode("abc")]
    data.save_artifacts(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").stops == own.stops


def test_a_tokenizer_that_was_trained_here_gives_its_separator_for_both_ends(tmp_path):
    """Without these ids, transformers takes its class's defaults 1 and 2, which are two bytes of
    this vocabulary."""
    run, out = tmp_path / "run", tmp_path / "out"
    import_weights(FIXTURE, run)
    for name in ("special_tokens.json", "tokenizer.json"):
        (run / name).unlink(missing_ok=True)
    make_bytes().save(run / "tokenizer.json")
    export_weights(config_file.load(run), run, out)
    hf = json.loads((out / "config.json").read_text())
    assert (hf["bos_token_id"], hf["eos_token_id"]) == (0, 0)
    about = json.loads((out / "tokenizer_config.json").read_text())
    assert (about["bos_token"], about["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
