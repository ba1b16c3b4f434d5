"""A model exported by a converter, and use.py of its folder called by the converter's Python,
without this package."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import saved_runs
from bigmodel_jax import cli
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.export import converter_env
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import MODELS, ModelConfig
from bigmodel_jax.models.bert import BertConfig

NAMED = {"bert_classifier": dataclasses.replace(BertConfig.tiny(), head="classification", num_classes=3)}
SIZES = {"b": 4, "t": 7, "e": 6}  # other ones than those that the export itself checks
PROMPT = [5, 17, 3, 9]


def model_of(name: str) -> ModelConfig:
    return NAMED.get(name) or MODELS[name].tiny()


def export(name: str, form: str, tmp_path: Path, *options: str) -> tuple[Path, Path]:
    """(the run, the exported folder)."""
    run, out = tmp_path / name, tmp_path / f"{name}_{form}"
    saved_runs.save_run(model_of(name), run)
    cli.main(["export", str(run), str(out), "--format", form, *options])
    return run, out


def use(form: str, out: Path, *args: str) -> str:
    """What use.py prints."""
    python = converter_env.ensure(form) / "bin" / "python"
    done = subprocess.run([python, "-I", out / "use.py", *args], capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def inputs_of(signature: dict, sizes: dict) -> dict[str, np.ndarray]:
    """Random inputs of `forward`; the last row is two tokens shorter than the others."""
    rng, found = np.random.default_rng(1), {}
    for name, text in signature["programs"]["forward"]["inputs"].items():
        dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()
        shape = [sizes[n] if n in sizes else int(n) for n in shape.split(",")]
        found[name] = rng.normal(size=shape).astype(dtype) if dtype == "float32" else rng.integers(0, 10, shape, dtype)
        if name == "segment_ids":
            found[name] = np.ones(shape, np.int32)
            found[name][-1, -2:] = 0
        if name == "token_types":
            found[name] %= 2
        if name == "positions":
            found[name] = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
    return found


def check(name: str, form: str, tmp_path: Path) -> dict:
    """Exports a model and holds what use.py gives against the model's own outputs; returns
    signature.json."""
    _, out = export(name, form, tmp_path)
    signature = json.loads((out / "signature.json").read_text())
    assert all(about["difference"] <= 1e-4 for about in signature["programs"].values())
    inputs = inputs_of(signature, SIZES)
    np.savez(out / "in.npz", **inputs)
    assert "forward" in use(form, out)
    use(form, out, "--inputs", "in.npz", "--outputs", "out.npz")
    model = model_of(name).make()
    weights = saved_runs.drawn(model.spec)
    expected = jax.jit(model.apply)(weights, {key: jnp.asarray(x) for key, x in inputs.items()}).value
    np.testing.assert_allclose(np.load(out / "out.npz")["output"], expected, rtol=1e-4, atol=1e-4)
    if model.make_cache is not None:
        said = use(form, out, "--prompt", ",".join(map(str, PROMPT)), "--tokens", "8")
        sample = SampleConfig(max_tokens=8, temperature=0.0)
        assert [int(n) for n in said.split(",")] == generate(model, weights, [PROMPT], sample, stop=())[0]
    return signature
