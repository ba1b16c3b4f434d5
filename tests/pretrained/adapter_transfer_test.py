"""PEFT folders as runs beside their base, and adapted runs as PEFT folders, merged folders and
merged runs."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from bigmodel_jax import cli, config_file
from bigmodel_jax.config import TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import adapters
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.objectives import Objective
from bigmodel_jax.pretrained import peft, peft_config
from bigmodel_jax.pretrained.adapter_transfer import export_adapters, import_adapters
from bigmodel_jax.pretrained.transfer import export_weights, import_weights
from bigmodel_jax.training import constants, run_folder
from bigmodel_jax.training.beginning import begin
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.saved import load_weights, merged
from bigmodel_jax.training.state import weights
from peft_test import BASE, FOLDERS, KINDS, TOKENS

EXACT = [kind for kind in KINDS if kind not in ("dora", "embedding")]
FEW = {"lora": [], "dora": [], "embedding": [pytest.mark.slow]}  # two in the quick suite, one in the slow one
kinds = pytest.mark.parametrize("kind", [pytest.param(k, marks=FEW.get(k, pytest.mark.exhaustive)) for k in KINDS])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the run `base`, and of one beside it for each of PEFT's folders that a test
    asks for."""
    folder = tmp_path_factory.mktemp("runs")
    import_weights(BASE, folder / "base")

    class Runs(dict):
        def __missing__(self, kind: str) -> Path:
            import_adapters(FOLDERS / kind, folder / kind, str(folder / "base"))
            self[kind] = folder / kind
            return folder / kind

    return Runs(base=folder / "base")


def logits(config, tree):
    return jax.jit(config.make_model().apply)(tree, {"tokens": jnp.asarray(TOKENS)}).value


def of_run(run: Path, **parallel):
    config = dataclasses.replace(config_file.load(run), parallel=ParallelConfig(**(parallel or {"data": 1})))
    devices = jax.devices()[: 8 if parallel else 1]
    mesh = sharding.make_mesh(config.parallel, devices)
    with sharding.use(mesh, config.parallel.rules):
        return logits(config, load_weights(config, run, mesh)[0])


def close(found, want):
    assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.slow
@kinds
def test_an_imported_adapter_gives_pefts_logits(kind, runs):
    close(of_run(runs[kind]), np.load(FOLDERS / kind / "logits.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_it_gives_them_on_another_mesh(kind, runs):
    close(of_run(runs[kind], data=2, fsdp=2, tensor=2), np.load(FOLDERS / kind / "logits.npy"))


@kinds
def test_its_run_holds_the_adapters_alone(kind, runs):
    run = runs[kind]
    saved = json.loads((run / "checkpoints/0/meta/data.json").read_text())["leaves"]
    assert {leaf.split("/")[1] for leaf in saved if leaf != "step"} == {"adapters"}
    assert not (run / "constants").exists()
    (source,) = json.loads((run / "constants.json").read_text())["sources"]
    assert source["beside"] == "../base/checkpoints"
    assert config_file.load(run).train.init_from == f"{run.parent / 'base'}@0"


@kinds
def test_its_export_is_pefts_folder_again(kind, runs, tmp_path):
    export_adapters(config_file.load(runs[kind]), runs[kind], tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / peft.WEIGHTS), load_file(FOLDERS / kind / peft.WEIGHTS)
    theirs = {name: x for name, x in theirs.items() if "base_layer" not in name}
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        if kind in EXACT or "lora_A" in name or "lora_B" in name:
            np.testing.assert_array_equal(x, theirs[name], err_msg=name)
        else:  # what differs from the base is kept, and the sum is rounded
            np.testing.assert_allclose(x, theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)
    a, b = peft_config.read(FOLDERS / kind), peft_config.read(tmp_path / "out")
    assert (a.r, a.lora_alpha, a.use_rslora, a.use_dora) == (b.r, b.lora_alpha, b.use_rslora, b.use_dora)


@kinds
def test_peft_reads_our_folder_and_gives_our_logits(kind, runs, tmp_path, request):
    python = request.config.getoption("--reference-python")
    if not python:
        pytest.skip("live: --reference-python PATH, with torch, transformers and peft")
    export_adapters(config_file.load(runs[kind]), runs[kind], tmp_path / "out")
    script = Path(__file__).parent / "peft_reference.py"
    subprocess.run([python, script, "read", BASE, tmp_path / "out"], check=True, capture_output=True)
    close(np.load(tmp_path / "out/logits.npy"), of_run(runs[kind]))


@pytest.mark.slow
@kinds
def test_the_merged_folder_has_the_same_logits(kind, runs, tmp_path):
    export_weights(config_file.load(runs[kind]), runs[kind], tmp_path / "merged")
    import_weights(tmp_path / "merged", tmp_path / "run")
    close(of_run(tmp_path / "run"), of_run(runs[kind]))


@pytest.mark.slow
def test_a_run_without_adapters_starts_from_the_merged_weights(runs):
    config = config_file.load(runs["lora"])
    train = dataclasses.replace(config.train, init_from=str(runs["lora"]))
    plain = dataclasses.replace(config, adapters=AdapterConfig(), train=train, parallel=ParallelConfig(data=1))
    fresh = fresh_state(plain, sharding.make_mesh(plain.parallel, jax.devices()[:1]))
    assert not fresh.constants
    assert not fresh.missing
    close(logits(plain, weights(fresh.state)), np.load(FOLDERS / "lora/logits.npy"))


def test_a_run_with_the_same_adapters_takes_them_and_refers_to_the_base(runs):
    config = config_file.load(runs["lora"])
    train = dataclasses.replace(config.train, init_from=str(runs["lora"]))
    config = dataclasses.replace(config, train=train, parallel=ParallelConfig(data=1))
    fresh = fresh_state(config, sharding.make_mesh(config.parallel, jax.devices()[:1]))
    assert not fresh.missing
    assert {place.directory for place in fresh.places.values()} == {runs["base"] / "checkpoints"}
    close(logits(config, weights(fresh.state, fresh.constants)), np.load(FOLDERS / "lora/logits.npy"))


@pytest.mark.slow
def test_fresh_adapters_begin_as_the_base_bit_for_bit_and_are_named(runs, capsys):
    config = config_file.load(runs["base"])
    train = TrainConfig(init_from=str(runs["base"]))
    config = dataclasses.replace(config, adapters=adapters.Lora(rank=2), train=train, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    fresh = begin(config, mesh, Console())
    assert "; new here: adapters.\n" in capsys.readouterr().out
    assert params.paths(fresh.state.params).keys() == set(fresh.missing)
    base = load_weights(config_file.load(runs["base"]), runs["base"], mesh)[0]
    jax.tree.map(np.testing.assert_array_equal, fresh.constants, base)
    found, want = (logits(config, tree) for tree in (weights(fresh.state, fresh.constants), base))
    np.testing.assert_array_equal(found, want)


@dataclasses.dataclass(frozen=True)
class Taught(Objective):
    """An objective with a teacher of the model's own shapes."""

    source: str = ""

    def parameters(self, model):
        fixed = {"kind": "constant", "decay": None}
        return {"teacher": params.map_spec(lambda p: dataclasses.replace(p, **fixed), model.make().spec)}

    def sources(self):
        return {"teacher": self.source}


@pytest.mark.slow
def test_a_teacher_with_adapters_is_merged_and_one_without_stays_where_it_is(runs, tmp_path):
    config = config_file.load(runs["base"])
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    for kind, want in (("lora", np.load(FOLDERS / "lora/logits.npy")), ("base", of_run(runs["base"]))):
        taught = dataclasses.replace(config, objective=Taught(str(runs[kind])))
        fresh = fresh_state(taught, mesh)
        close(logits(config, fresh.constants["teacher"]), want)
        assert bool(fresh.places) == (kind == "base")
        (tmp_path / kind).mkdir()
        constants.keep(tmp_path / kind, taught, fresh.constants, fresh.places)
        assert (tmp_path / kind / "constants").exists() == (kind == "lora")
        jax.tree.map(np.testing.assert_array_equal, constants.load(taught, tmp_path / kind, mesh), fresh.constants)


@pytest.mark.slow
def test_a_base_in_four_bits_is_packed_again_from_the_source_bit_for_bit(runs, tmp_path):
    config, base = config_file.load(runs["base"]), adapters.Lora(rank=2, base=BaseConfig(matrices="nf4"))
    config = dataclasses.replace(config, adapters=base, train=TrainConfig(init_from=str(runs["base"])))
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    fresh = fresh_state(config, mesh)
    (tmp_path / "run").mkdir()
    constants.keep(tmp_path / "run", config, fresh.constants, fresh.places)
    assert not (tmp_path / "run/constants").exists()
    jax.tree.map(np.testing.assert_array_equal, constants.load(config, tmp_path / "run", mesh), fresh.constants)
    tree = merged(config, weights(fresh.state, fresh.constants), mesh)
    assert {str(x.dtype) for x in jax.tree.leaves(tree)} == {"float32"}
    close(logits(config_file.load(runs["base"]), tree), logits(config, weights(fresh.state, fresh.constants)))


def test_no_field_of_the_adapters_may_change_when_a_run_goes_on(runs):
    config = config_file.load(runs["lora"])
    changed = dataclasses.replace(config, adapters=dataclasses.replace(config.adapters, alpha=9.0))
    assert run_folder.differences(config, changed) == {"adapters.alpha": (8.0, 9.0)}


def test_other_adapters_than_the_sources_are_one_line(runs):
    config = config_file.load(runs["lora"])
    train = dataclasses.replace(config.train, init_from=str(runs["lora"]))
    config = dataclasses.replace(config, train=train, adapters=dataclasses.replace(config.adapters, name="other"))
    with pytest.raises(
        ValueError, match=r"holds adapters/default/layers/attn/q/a, which this run lacks; give this run the same"
    ):
        fresh_state(config, sharding.make_mesh(config.parallel))


def test_the_command_line_imports_generates_nothing_twice_and_exports(runs, tmp_path, capsys):
    base, run, out = (str(p) for p in (runs["base"], tmp_path / "run", tmp_path / "out"))
    cli.main(["import", str(FOLDERS / "lora"), "--base", base, "--run_dir", run])
    assert "parameters with adapters of 896, float32" in capsys.readouterr().out
    cli.main(["export", run, out, "--peft", "--dtype", "bfloat16"])
    assert f"{out}: adapters of LlamaForCausalLM, bfloat16" in capsys.readouterr().out
    assert {str(x.dtype) for x in load_file(Path(out) / peft.WEIGHTS).values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("import", "{peft}"), r"import: --base = '': '\S+' holds adapters: --base RUN says on which run's weights"),
        (("import", "{hf}", "--base", "{base}"), r"holds no adapters"),
        (("import", "{peft}", "--base", "/no"), r"--base = '/no' is not a run's folder"),
        (("import", "{peft}", "--base", "{base}@3"), r"--base = '\S+@3': that step is not kept"),
        (("import", "{peft}", "--base", "{lora}"), r"--base = '\S+' has adapters itself; export it merged"),
        (("export", "{base}", "{out}", "--peft"), r"--peft: \S+ has no LoRA adapters"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(args, says, runs, tmp_path, capsys):
    names = {"peft": FOLDERS / "lora", "hf": BASE, "base": runs["base"], "lora": runs["lora"], "out": tmp_path / "out"}
    args = [arg.format(**names) for arg in args]
    with pytest.raises(SystemExit) as stop:
        cli.main([*args, *(("--run_dir", str(tmp_path / "run")) if args[0] == "import" else ())])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=says):
        raise ValueError(str(stop.value.__context__))


@pytest.mark.slow
def test_adapters_of_another_base_are_one_line(tmp_path):
    import_weights(BASE.parent / "gpt2", tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"lora_A\.weight, .* are of another base") as error:
        import_adapters(FOLDERS / "lora", tmp_path / "run", str(tmp_path / "gpt2"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_adapter_on_a_table_that_is_the_head_too_is_refused(runs, tmp_path):
    shutil.copytree(runs["base"], tmp_path / "base")
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    config["model"]["tied_embeddings"] = True
    path.write_text(json.dumps(config))
    shutil.copytree(FOLDERS / "embedding", tmp_path / "peft")
    for name, change in ((peft_config.FILE, {"modules_to_save": None}), (peft.WEIGHTS, "lm_head")):
        path = tmp_path / "peft" / name
        if isinstance(change, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        else:
            save_file({n: x for n, x in load_file(path).items() if change not in n}, path)
    with pytest.raises(ValueError, match=r"the base's head is the same table"):
        import_adapters(tmp_path / "peft", tmp_path / "run", str(tmp_path / "base"))
