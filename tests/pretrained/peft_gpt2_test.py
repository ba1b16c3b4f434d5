"""PEFT folders of GPT-2, whose maps lie (in, out) and whose queries, keys and values are one
tensor, against ours."""

import dataclasses
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few
from safetensors.numpy import load_file

import peft_test
from bigmodel_jax import config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.pretrained import peft, peft_config
from bigmodel_jax.pretrained.adapter_transfer import export_adapters, import_adapters
from bigmodel_jax.pretrained.transfer import import_weights
from bigmodel_jax.training.saved import load_weights
from peft_test import TOKENS, merged

HERE = Path(__file__).parent
BASE, FOLDERS = HERE.parent / "parity/fixtures/gpt2", HERE / "fixtures/peft_gpt2"
KINDS = sorted(p.name for p in FOLDERS.iterdir())
QKV = [f"layers/attn/{name}" for name in "qkv"]


@pytest.fixture(scope="module")
def base():
    return peft_test.opened(BASE)


@pytest.fixture(scope="module")
def run_logits(base):
    apply = jax.jit(base[1].make().apply)
    return lambda tree: np.asarray(apply(tree, {"tokens": jnp.asarray(TOKENS)}).value)


def read(path, base):
    family, cfg, spec, values = base
    return peft.read(path, family, spec, cfg, values)


def write(found, target, base):
    family, cfg, spec, _ = base
    peft.write(found, target, family, spec, cfg)


def close(found, want):
    assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("kind", KINDS)
def test_pefts_logits_are_those_of_the_adapters_that_were_read(kind, base, run_logits):
    want = np.load(FOLDERS / kind / "logits.npy")
    assert np.abs(run_logits(params.from_paths(base[3])) - want).max() > 0.1 * np.abs(want).max(), (
        "they change something"
    )
    close(run_logits(merged(read(FOLDERS / kind, base), base)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_holds_the_same_bits_under_the_same_names(kind, base, tmp_path):
    found = read(FOLDERS / kind, base)
    write(found, tmp_path, base)
    ours, theirs = (load_file(folder / peft.WEIGHTS) for folder in (tmp_path, FOLDERS / kind))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)
    a, b = peft_config.read(FOLDERS / kind), peft_config.read(tmp_path)
    assert a.fan_in_fan_out
    for field in ("fan_in_fan_out", "r", "lora_alpha", "use_rslora", "use_dora"):
        assert getattr(a, field) == getattr(b, field)


def apart(found, seed=0):
    """The adapters after each of them has been trained by itself."""
    rng = np.random.default_rng(seed)

    def moved(m):
        parts = {name: getattr(m, name) for name in ("a", "b", "magnitude") if getattr(m, name) is not None}
        return dataclasses.replace(m, **{k: x + rng.normal(size=x.shape).astype("f") * 0.1 for k, x in parts.items()})

    return dataclasses.replace(found, matrices={path: moved(m) for path, m in found.matrices.items()})


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_three_adapters_that_have_parted_are_one_of_three_times_the_rank(kind, base, tmp_path):
    found = apart(read(FOLDERS / kind, base))
    if kind == "lora":  # keys have none, and values another rank and scale
        q, _, v = (found.matrices[path] for path in QKV)
        matrices = {QKV[0]: q, QKV[2]: dataclasses.replace(v, rank=2, alpha=3.0, a=v.a[..., :2], b=v.b[:, :2])}
        found = dataclasses.replace(found, matrices=matrices)
    write(found, tmp_path, base)
    again = read(tmp_path, base)
    rank = {"lora": 4 + 2, "dora": 3 * 4, "rslora": 3 * 2}[kind]
    assert {again.matrices[path].rank for path in QKV} == {rank}
    ours, theirs = (params.paths(merged(one, base)) for one in (again, found))
    for path, x in ours.items():
        np.testing.assert_allclose(x, theirs[path], atol=1e-6 * np.abs(theirs[path]).max(), err_msg=path)


def refused(found, base, folder, text):
    with pytest.raises(ValueError, match=text) as error:
        write(found, folder, base)
    assert "\n" not in str(error.value)


def test_what_peft_has_no_form_for_is_one_line(base, tmp_path):
    dora, saved = read(FOLDERS / "dora", base), read(FOLDERS / "saved", base)
    some = {path: m for path, m in dora.matrices.items() if path != QKV[1]}
    refused(
        dataclasses.replace(dora, matrices=some),
        base,
        tmp_path,
        "layers/attn/k has no adapter, and DoRA needs one for the whole",
    )
    one = {QKV[1]: saved.saved[QKV[1]]}
    refused(
        dataclasses.replace(saved, saved=one),
        base,
        tmp_path,
        r"layers/attn/k is trained in full, and .*c_attn\.weight holds 3",
    )


# ------------------------------------------------------------------------------------------ as runs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    import_weights(BASE, folder / "base")
    return folder / "base"


def of_run(run):
    config = config_file.load(run)
    tree, _ = load_weights(config, run, sharding.make_mesh(config.parallel, jax.devices()[:1]))
    return jax.jit(config.make_model().apply)(tree, {"tokens": jnp.asarray(TOKENS)}).value


@pytest.mark.parametrize("kind", few(KINDS, "dora", marks=pytest.mark.slow))
def test_a_run_of_the_folder_gives_pefts_logits_and_exports_the_folder_again(kind, source, tmp_path):
    config = import_adapters(FOLDERS / kind, tmp_path / "run", str(source))
    close(of_run(tmp_path / "run"), np.load(FOLDERS / kind / "logits.npy"))
    export_adapters(config, tmp_path / "run", tmp_path / "out")
    ours, theirs = (load_file(folder / peft.WEIGHTS) for folder in (tmp_path / "out", FOLDERS / kind))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_allclose(x, theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_we_write_and_gives_our_logits(kind, base, run_logits, tmp_path, request):
    python = request.config.getoption("--reference-python")
    if not python:
        pytest.skip("live: --reference-python PATH, with torch, transformers and peft")
    found = apart(read(FOLDERS / kind, base))
    write(found, tmp_path / "out", base)
    script = HERE / "peft_reference.py"
    subprocess.run([python, script, "read", BASE, tmp_path / "out"], check=True, capture_output=True)
    close(run_logits(merged(found, base)), np.load(tmp_path / "out/logits.npy"))
