"""GGUF files that an export writes: read back they are the run, and llama.cpp writes the same
tokens from them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers as tokenizers_package

import saved_runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.tokenizers import special_tokens, tokenizers
from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens
from bigmodel_jax.export import gguf_metadata
from bigmodel_jax.pretrained import gguf
from bigmodel_jax.pretrained.transfer import import_weights
from bigmodel_jax.training.saved import load_weights

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
TEXTS = ["a rose is a rose, is a rose", "bees sting; the rest is rest.", "1234 tests", "don't", "über"]


def weights(run: Path) -> dict[str, np.ndarray]:
    config = config_file.load(run)
    tree, _ = load_weights(config, run, sharding.make_mesh(ParallelConfig(data=-1)))
    return {path: np.asarray(x) for path, x in params.paths(tree).items()}


def run_of(fixture: str, tmp_path: Path) -> Path:
    """A run of a published fixture, with a tokenizer."""
    source = tmp_path / "source"
    source.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FIXTURES / fixture / name, source / name)
    import_weights(source, tmp_path / "run")
    small(64).save(tmp_path / "run" / "tokenizer.json")
    return tmp_path / "run"


def small(size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE of fewer tokens than there are bytes: those of the texts alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [piece for text in TEXTS for piece, _ in cut.pre_tokenize_str(text)]
    characters = sorted({c for word in words for c in word})
    vocab = {"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(characters)}
    merges = [("r", "o"), ("ro", "s"), ("e", "s")]
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
    assert len(vocab) <= size
    model = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    model.pre_tokenizer, model.decoder = cut, decoders.ByteLevel()
    model.add_special_tokens(["<|endoftext|>"])
    return tokenizers.Tokenizer(model)


def export(run: Path, out: Path, kind: str = "") -> Path:
    cli.main(["export", str(run), str(out), "--format", "gguf", *(["--kind", kind] if kind else [])])
    return out / "model.gguf"


def refused(capsys, run: Path, out: Path, *more: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(run), str(out), "--format", "gguf", *more])
    assert not out.exists()
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert said.count("\n") == 0
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "architecture"),
    [("llama31", "llama"), *(pytest.param(n, n, marks=pytest.mark.slow) for n in ("llama", "qwen2", "qwen3"))],
)
def test_a_float32_file_is_imported_bit_for_bit(fixture, architecture, tmp_path):
    run = run_of(fixture, tmp_path)
    path = export(run, tmp_path / "out", "F32")
    config = import_weights(path, tmp_path / "again")
    assert gguf.open_gguf(path).family.architecture == gguf.ARCHITECTURES[architecture]
    was = config_file.load(run).model
    assert dataclasses.replace(config.model, init_std=was.init_std) == was
    ours, theirs = weights(run), weights(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if not np.array_equal(ours[path], theirs[path])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "worst"), [("", 2.0**-11), ("BF16", 2.0**-8), ("Q8_0", 1 / 127), ("Q4_1", 1 / 15), ("Q4_0", 1 / 7)]
)
def test_each_kind_comes_back_within_its_rounding(kind, worst, tmp_path):
    """The test divides a weight's worst difference by the largest weight of its row, which is at
    least the largest of its block."""
    run = run_of("llama", tmp_path)
    found = gguf.open_gguf(export(run, tmp_path / "out", kind)).source
    exact = gguf.open_gguf(export(run, tmp_path / "exact", "F32")).source
    changed = 0
    for name, tensor in exact.items():
        a, b = tensor.read(), found[name].read()
        assert np.all(np.abs(a - b) <= worst * np.abs(a).max(axis=-1, keepdims=True) + 1e-9), name
        changed += not np.array_equal(a, b)
        assert a.ndim > 1 or np.array_equal(a, b), f"{name}: vectors stay as they are"
    assert changed > 10


@pytest.mark.slow
def test_the_tokenizer_reads_texts_as_the_runs_does(tmp_path):
    run = run_of("llama", tmp_path)
    (run / "special_tokens.json").unlink(missing_ok=True)  # as of a tokenizer that was trained here
    (run / "chat_template.jinja").write_text("{{ messages }}")
    found = gguf.open_gguf(export(run, tmp_path / "out"))
    own = tokenizers.load_tokenizer(run / "tokenizer.json")
    assert [found.tokenizer.encode(text).ids for text in TEXTS] == [own.encode(text) for text in TEXTS]
    assert found.chat_template == "{{ messages }}"
    assert found.special.ids("eos_token_id") == [own.separator]
    assert found.special.names["add_bos_token"] is True


def test_what_the_package_cannot_write_is_one_line(tmp_path, capsys):
    run = run_of("llama", tmp_path)
    said = refused(capsys, run, tmp_path / "out", "--kind", "Q4_K")
    assert "the gguf package reads it and cannot write it" in said
    assert "perhaps you meant 'Q8_0'" in refused(capsys, run, tmp_path / "out", "--kind", "Q8_O")
    assert "--dtype = 'bfloat16': --format gguf takes no such option" in refused(
        capsys, run, tmp_path / "out", "--dtype", "bfloat16"
    )


@pytest.mark.slow
def test_a_model_or_a_tokenizer_without_such_a_file_is_one_line(tmp_path, capsys):
    other = run_of("gpt2", tmp_path)
    assert "GPT2LMHeadModel cannot be written as GGUF; allowed: LlamaForCausalLM" in refused(
        capsys, other, tmp_path / "out"
    )
    saved_runs.save_run(config_file.load(run_of("llama", tmp_path / "b")).model, tmp_path / "bare")
    assert "holds no tokenizer.json" in refused(capsys, tmp_path / "bare", tmp_path / "out")
    words = tokenizers.train_wordpiece(TEXTS * 20, 40)
    words.save(tmp_path / "bare" / "tokenizer.json")
    assert "holds a WordPiece model" in refused(capsys, tmp_path / "bare", tmp_path / "out")


@pytest.mark.slow
def test_values_beyond_float16_are_refused_and_not_made_infinite(tmp_path, capsys):
    run = run_of("llama", tmp_path)
    config = config_file.load(run)
    saved_runs.save_run(config.model, tmp_path / "large", scale=1e6)
    shutil.copyfile(run / "tokenizer.json", tmp_path / "large" / "tokenizer.json")
    assert "beyond the range of float16; --kind BF16 or F32" in refused(capsys, tmp_path / "large", tmp_path / "out")


def fixture_tokenizer(name: str, **changes) -> tokenizers.Tokenizer:
    said = json.loads((Path(__file__).parents[1] / "data/fixtures/chat.json").read_text())["tokenizers"][name] | changes
    return tokenizers.Tokenizer(tokenizers_package.Tokenizer.from_str(json.dumps(said)))


def test_a_space_in_front_is_stated_in_either_form(caplog):
    """Newer files of Llama's tokenizer put the space in front by `Metaspace`."""
    key = "tokenizer.ggml.add_space_prefix"
    for name, prefix in (("prepend", True), ("first", True), ("none", False)):
        caplog.clear()
        tokenizer = fixture_tokenizer(name)
        assert gguf_metadata.vocabulary(tokenizer, tokenizer.vocab_size, "", Path("t"))[key] == prefix
        assert ("texts that begin with a space" in caplog.text) == (name == "first")


def test_a_normalization_that_llama_cpp_would_lose_is_refused():
    tokenizer = fixture_tokenizer("none", normalizer={"type": "Lowercase"})
    with pytest.raises(ValueError, match="^export: gguf: t gives 'Two words' other tokens than llama.cpp's form of it"):
        gguf_metadata.vocabulary(tokenizer, tokenizer.vocab_size, "", Path("t"))


def test_each_token_at_which_a_model_stops_is_stated(caplog):
    """Llama 3.1 stops at the ends of a text, of a message and of a turn."""
    tokenizer = fixture_tokenizer("prepend")
    for ends, said in (([2, 4, 3], ""), ([2, 4, 3, 0], "will not stop at the tokens [0]")):
        tokenizer.special = SpecialTokens(generation={"eos_token_id": ends})
        keys = gguf_metadata.vocabulary(tokenizer, tokenizer.vocab_size, "", Path("t"))
        assert special_tokens.from_gguf(keys).ids("eos_token_id") == ends[:3]
        assert said in caplog.text
