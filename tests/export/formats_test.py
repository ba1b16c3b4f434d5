"""What every format has in common: a card, a use.py, whole or not at all, and options that are used
or refused."""

import ast
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import saved_runs
from bigmodel_jax import cli
from bigmodel_jax.core import params
from bigmodel_jax.export import formats
from bigmodel_jax.models import MODELS
from bigmodel_jax.pretrained import bitsandbytes

HERE = Path(__file__).parent


@pytest.fixture
def run(tmp_path):
    saved_runs.save_run(MODELS["llama"].tiny(), tmp_path / "run")
    return tmp_path / "run"


def refused(capsys, *args) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", *map(str, args)])
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    return said.removeprefix("error: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "orbx"], "--format = 'orbx' (perhaps you meant 'orbax'); allowed: huggingface, peft, gguf"),
        (["--format", "orbax", "--kind", "nf4"], "--kind = 'nf4': --format orbax takes no such option; it belongs to hugging"),
        (["--length", "8"], "--length = 8: --format huggingface takes no such option; it belongs to stablehlo"),
        (["--format", "gguf", "--peft"], "--peft means --format peft, and --format gguf is given as well"),
        (["--kind", "nf5"], "--kind = 'nf5' (perhaps you meant 'nf4'); of huggingface these are known: nf4, int8"),
        (["--format", "peft"], "--peft: "),
        (["--step", "7"], "--step 7: that step is not kept"),
    ],
)  # fmt: skip
def test_an_option_is_used_or_refused_and_nothing_is_left(options, said, run, tmp_path, capsys):
    assert said in refused(capsys, run, tmp_path / "out", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_holds_something_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "exists and is not empty" in refused(capsys, run, tmp_path / "out", "--format", "orbax")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_card_says_what_from_where_how_good_and_under_which_licence(run, tmp_path):
    records = [{"step": 0, "eval/loss": 1.25, "eval/accuracy": 0.5}, {"step": 4, "eval/loss": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "data_cards").mkdir()
    (run / "data_cards" / "a.json").write_text(json.dumps({"licence": "CC-BY-4.0"}))
    cli.main(["export", str(run), str(tmp_path / "out"), "--format", "orbax"])
    rows = dict(
        line.strip("| ").split(" | ", 1)
        for line in (tmp_path / "out" / "README.md").read_text().splitlines()
        if line.startswith("| ") and line.strip("| ").count(" | ") == 1
    )
    assert rows["Run"] == "run, step 0"
    assert rows["Metrics at step 0"] == "loss 1.25, accuracy 0.5"
    assert rows["Licence of the data"] == "CC-BY-4.0"
    assert rows["Model"] == f"LlamaConfig, {params.count(MODELS['llama'].tiny().make().spec):,} parameters"
    assert "jax " in rows["Written by"]
    size = (tmp_path / "out" / "use.py").stat().st_size
    assert rows["use.py"] == f"{size:,}"


def test_the_card_of_imported_weights_names_no_data(run, tmp_path):
    cli.main(["export", str(run), str(tmp_path / "out"), "--format", "orbax"])
    assert "its weights were imported" in (tmp_path / "out" / "README.md").read_text()


def test_no_script_of_a_folder_imports_this_package():
    """The scripts run where the package is not installed. They need only what their row says."""
    assert {path.name for path in formats.SCRIPTS.glob("*.py")} - {"__init__.py"} == {
        row.script for row in formats.FORMATS.values()
    }
    for row in formats.FORMATS.values():
        tree = ast.parse((formats.SCRIPTS / row.script).read_text())
        named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        named += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        third = {name.split(".")[0] for name in named} - set(sys.stdlib_module_names) - {"numpy"}
        needs = {"orbax-checkpoint": "orbax", "llama-cpp-python": "llama_cpp", "ai-edge-litert": "ai_edge_litert"}
        assert third <= {needs.get(name, name) for name in row.needs}, row.script


# llama-cpp-python has no wheels, so a stand-in with its signatures (0.3.36) takes its place.
LLAMA_CPP = """
import itertools, pathlib
class Llama:
    def __init__(self, model_path, *, n_ctx, verbose):
        assert pathlib.Path(model_path).is_file()
    def generate(self, tokens, top_k=40, top_p=0.95, min_p=0.05, typical_p=1.0, temp=0.8, repeat_penalty=1.0):
        return itertools.count(tokens[-1] + 1)
    def __call__(self, prompt, max_tokens=16, temperature=0.8):
        return {"choices": [{"text": f" and {max_tokens} more"}]}
"""


def test_the_script_of_gguf_continues_ids_and_texts(tmp_path):
    (tmp_path / "use.py").write_bytes((formats.SCRIPTS / "gguf.py").read_bytes())
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    (tmp_path / "model.gguf").touch()
    for args, said in ((("--ids", "5,17", "--tokens", "3"), "18,19,20"), (("--prompt", "one"), "one and 32 more")):
        done = subprocess.run(
            [sys.executable, "use.py", *args], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.stdout.strip() == said


@pytest.mark.slow
def test_the_script_of_peft_adds_the_adapters_to_their_base(tmp_path, request):
    python = request.config.getoption("--reference-python")
    if not python:
        pytest.skip("--reference-python PATH: a Python with torch, transformers and peft")
    adapters, base = HERE.parent / "pretrained/fixtures/peft/lora", HERE.parent / "parity/fixtures/llama"
    shutil.copytree(adapters, tmp_path / "out")
    shutil.copyfile(formats.SCRIPTS / "peft.py", tmp_path / "out" / "use.py")
    tokens = "35,5,39,1,69,65,63,29,48"  # those of the first row of logits.npy
    argv = [python, tmp_path / "out" / "use.py", base, "--tokens", tokens, "--outputs", tmp_path / "out.npz"]
    subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npz")["logits"][0], np.load(adapters / "logits.npy")[0], atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.few("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_script_of_orbax_restores_the_weights(dtype, run, tmp_path):
    cli.main(["export", str(run), str(tmp_path / "out"), "--format", "orbax", "--dtype", dtype])
    argv = [sys.executable, tmp_path / "out" / "use.py", "--outputs", tmp_path / "out.npz"]
    subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    found = dict(np.load(tmp_path / "out.npz"))
    expected = params.paths(saved_runs.drawn(MODELS["llama"].tiny().make().spec))
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], np.asarray(x.astype(dtype), np.float32))


def test_nf4_is_within_half_a_level_of_the_weights():
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    found = bitsandbytes.packed("nf4", name, x)
    codes = np.stack([found[name][:, 0] >> 4, found[name][:, 0] & 15], 1).reshape(-1)
    again = found[f"{name}.quant_map"][codes] * np.repeat(found[f"{name}.absmax"], 64)[: x.size]
    gaps = np.diff(found[f"{name}.quant_map"]).max() / 2
    assert np.abs(again - x.reshape(-1)).max() <= gaps * np.abs(x).max() * (1 + 1e-6)
    assert json.loads(found[f"{name}.quant_state.bitsandbytes__nf4"].tobytes())["shape"] == [6, 40]
    assert list(bitsandbytes.packed("nf4", "model.norm.weight", x)) == ["model.norm.weight"]


@pytest.mark.slow
def test_transformers_loads_the_folders_as_their_scripts_do(tmp_path, request):
    python = request.config.getoption("--reference-python")
    if not python:
        pytest.skip("--reference-python PATH: a Python with torch, transformers and bitsandbytes")
    # On a CPU bitsandbytes multiplies by NF4 in blocks of 64 inputs and 32 outputs alone.
    config = dataclasses.replace(MODELS["llama"].tiny(), embed_dim=64, head_dim=16, mlp_dim=128)
    run = tmp_path / "run"
    saved_runs.save_run(config, run)
    for name, more in {"plain": [], "nf4": ["--kind", "nf4"], "int8": ["--kind", "int8"]}.items():
        cli.main(["export", str(run), str(tmp_path / name), *more])
        argv = [python, tmp_path / name / "use.py", "--tokens", "5,17,3", "--outputs", tmp_path / f"{name}.npz"]
        subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    model = config.make()
    expected = model.apply(saved_runs.drawn(model.spec), {"tokens": np.array([[5, 17, 3]])}).value
    np.testing.assert_allclose(np.load(tmp_path / "plain.npz")["logits"], expected, atol=1e-4)
    for kind in ("nf4", "int8"):
        argv = [python, HERE / "bitsandbytes_reference.py", tmp_path / "plain", kind, tmp_path / kind]
        said = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        assert (said["only_one"], said["differing"], said["logits"]) == ([], 0.0, 0.0)
        assert said["compared"] > 40
