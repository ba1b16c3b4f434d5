"""A run quantised into another folder: what eval, generate and export read there, and what is
refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bigmodel_jax import cli, config_file
from bigmodel_jax.compress import compare
from bigmodel_jax.compress.quantise import stored_bytes
from bigmodel_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Blocked
from bigmodel_jax.data import TextData, TextFiles, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.objectives import Distillation, NextToken
from bigmodel_jax.training import run as runs
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.saved import load_weights

pytestmark = pytest.mark.slow
MODEL = LlamaConfig(
    vocab_size=300, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=128, max_seq_len=64
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantise")
    lines = "".join(f"{a} and {b} are {a + b}.\n" for a in range(30) for b in range(30))
    (folder / "train.txt").write_text(lines)
    (folder / "validation.txt").write_text("".join(lines.splitlines(True)[::9]))
    data = TextData(
        source=TextFiles(train=str(folder / "train.txt"), validation=str(folder / "validation.txt")),
        tokenizer=TokenizerConfig(vocab_size=300),
        seq_len=32,
    )
    config = Config(
        MODEL,
        NextToken(),
        data,
        train=TrainConfig(steps=60, batch_size=16),
        eval=EvalConfig(batch_size=16, baselines=False, sample=SampleConfig(prompt="3 and", max_tokens=8)),
    )
    runs.train(config, folder / "run")
    return folder / "run"


def said(capsys, *args: str) -> str:
    cli.main(list(args))
    return capsys.readouterr().out


def evaluated(capsys, folder) -> float:
    return json.loads(said(capsys, "eval", str(folder), "--json").splitlines()[-1])["eval/bits_per_byte"]


CASES = [
    ("int8", "round", 0.01),
    ("int4", "gptq", 0.3),
    ("float8", "round", 0.1),
    ("int8_static", "round", 0.2),
]


@pytest.mark.exhaustive  # the comparison below quantizes by every kind in the slow suite
@pytest.mark.parametrize(("kind", "method", "lost"), CASES)
def test_a_quantised_run_evaluates_generates_and_is_small(run, tmp_path, capsys, kind, method, lost):
    folder = tmp_path / kind
    text = said(capsys, "quantize", str(run), str(folder), "--kind", kind, "--method", method, "--rows", "16")
    config = config_file.load(folder)
    assert f"{stored_bytes(config) / (4 * params.count(config.make_model().spec)):.4f} of float32" in text
    on_disk = sum(p.stat().st_size for p in (folder / "constants").rglob("*") if p.is_file())
    assert on_disk < 1.3 * stored_bytes(config) + 100_000
    assert abs(evaluated(capsys, folder) - evaluated(capsys, run)) < lost
    greedy = ("--temperature", "0", "--max_tokens", "8")
    wide = said(capsys, "generate", str(folder), "--prompt", "3 and", *greedy)
    assert wide == said(capsys, "generate", str(folder), "--prompt", "3 and", *greedy, "--widen", "never")


def test_weights_lie_as_they_are_stored_and_on_a_mesh_as_its_rules_say(run, tmp_path, capsys):
    said(capsys, "quantize", str(run), str(tmp_path / "small"), "--kind", "int4")
    config = config_file.load(tmp_path / "small")
    single = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    one = sharding.make_mesh(single.parallel, jax.devices()[:1])
    alone = params.paths(load_weights(single, tmp_path / "small", one)[0])
    assert isinstance(alone["layers/mlp/up"], Blocked)
    cut = dataclasses.replace(config, parallel=ParallelConfig(data=1, fsdp=2, tensor=2))
    mesh = sharding.make_mesh(cut.parallel, jax.devices()[:4])
    many = params.paths(load_weights(cut, tmp_path / "small", mesh)[0])
    assert many["layers/mlp/up"].values.sharding.shard_shape((2, 64, 64)) == (2, 32, 32)
    for path, x in alone.items():
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, x), jax.tree.map(np.asarray, many[path]))
    tokens = np.random.default_rng(0).integers(1, 300, (8, 17)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}
    losses = [
        float(make_eval_step(used, where)(params.from_paths(tree), batch)["loss"].compute())
        for used, where, tree in ((single, one, alone), (cut, mesh, many))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_an_export_holds_what_the_stored_weights_stand_for(run, tmp_path, capsys):
    said(capsys, "quantize", str(run), str(tmp_path / "small"), "--kind", "int4")
    said(capsys, "export", str(tmp_path / "small"), str(tmp_path / "out"))
    config = config_file.load(tmp_path / "small")
    weights, _ = load_weights(config, tmp_path / "small", sharding.make_mesh(config.parallel))
    found = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(found.T, np.asarray(weights["layers"]["mlp"]["up"].dense("float32"))[1])


@pytest.mark.exhaustive
def test_a_run_trained_for_it_is_evaluated_as_its_quantised_run_is(run, tmp_path, capsys):
    said(
        capsys,
        "train",
        str(run),
        "--run_dir",
        str(tmp_path / "aware"),
        "--quantize.kind",
        "int4",
        "--quantize.aware",
        "True",
    )
    said(capsys, "quantize", str(tmp_path / "aware"), str(tmp_path / "small"), "--kind", "int4")
    assert evaluated(capsys, tmp_path / "small") == pytest.approx(evaluated(capsys, tmp_path / "aware"), abs=1e-4)


def test_kinds_and_a_distilled_run_are_compared_on_a_page(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "TOKENS", 2)  # of which the seconds are measured
    monkeypatch.setattr(compare, "ROUNDS", 1)
    student, teacher = tmp_path / "student", config_file.load(run)
    small = dataclasses.replace(MODEL, num_layers=1)
    config = dataclasses.replace(teacher, model=small, objective=Distillation(teacher=str(run)))
    runs.train(dataclasses.replace(config, train=TrainConfig(steps=2, batch_size=16)), student)
    sizes = ("--rows", "16", "--eval_rows", "4096")
    out = said(
        capsys, "quantize", str(run), str(tmp_path / "kinds"), "--compare", "True", *sizes, "--beside", str(student)
    )
    record = json.loads((tmp_path / "kinds" / "quantized_kinds.json").read_text())
    found = {row["name"]: row for row in record["rows"]}
    assert {"float32", "int8", "int4", "int4, GPTQ", "nf4", "float8", "int8_dynamic", "int8_static"} <= found.keys()
    assert all(row["wide"] > 0 for row in found.values())
    assert found["int4"]["bytes"] < found["int8"]["bytes"] < found["float32"]["bytes"]
    assert abs(found["int8"]["value"] - found["float32"]["value"]) < 0.02
    assert "int4, GPTQ" in out
    assert found["student"]["bytes"] == 4 * params.count(small.make().spec)
    assert found["student"]["value"] == pytest.approx(evaluated(capsys, student), abs=1e-5)
    assert "bits per byte" in (tmp_path / "kinds" / "quantize.html").read_text()


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    assert end.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_quantised_is_one_line(run, tmp_path, capsys):
    with_gptq = ("--kind", "int8_dynamic", "--method", "gptq")
    assert "--beside = 'x' needs --compare True, to whose table it adds rows" in refused(
        capsys, "quantize", str(run), "--beside", "x"
    )
    assert "--method = 'gptq' with --kind = 'int8_dynamic'; it must be round" in refused(
        capsys, "quantize", str(run), *with_gptq
    )
    assert "allowed: 'int8'" in refused(capsys, "quantize", str(run), str(tmp_path / "x"), "--kind", "int9")
    small = tmp_path / "small"
    said(capsys, "quantize", str(run), str(small))
    assert "is quantised already (quantize.kind = 'int8')" in refused(
        capsys, "quantize", str(small), str(tmp_path / "y")
    )
    assert "exists and is not empty" in refused(capsys, "quantize", str(run), str(small))
    assert "a quantized run has no weights to train" in refused(capsys, "train", str(small), "--train.steps", "90")
    with_adapters = shutil.copytree(run, tmp_path / "adapters")
    config = dataclasses.replace(config_file.load(run), adapters=Lora(rank=2))
    config_file.save(config, with_adapters / "config.json")
    assert "has adapters; `export` writes them merged" in refused(
        capsys, "quantize", str(with_adapters), str(tmp_path / "z")
    )
    assert not (tmp_path / "z").exists()
