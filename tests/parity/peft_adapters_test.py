"""Adapters against PEFT: the same base and adapters give its logits, and its gradient of everything
that is trained."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.core import params
from bigmodel_jax.models.adapted import merge
from bigmodel_jax.models.adapters import Lora, Ranked
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.pretrained import folder
from reference import fixture_folder, read

PRODUCTS = r"layers/(attn|mlp)/.*"
TABLES = "layers/attn/q|embed/table|head/table"
lora = functools.partial(Lora, rank=4, alpha=8.0)
CASES = {
    "lora": lora(targets=PRODUCTS),
    "rslora": lora(targets=PRODUCTS, rank_stabilised=True),
    "dora": lora(targets=PRODUCTS, dora=True),
    "tables": lora(targets=TABLES),
    "dora_tables": lora(targets=TABLES, dora=True),
    "saved": lora(targets="layers/attn/v", trained=".*norm/scale|head/table"),
    "patterns": lora(targets=PRODUCTS, ranks=(Ranked(".*/q", 2, 3.0), Ranked(".*/up", 6), Ranked(".*/down", 4, 16.0))),
}
# PEFT's name of a module -> our path.
MODULES = {
    r"model\.embed_tokens": "embed/table",
    r"lm_head": "head/table",
    r"model\.norm": "norm/scale",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj": r"layers/attn/\2",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj": r"layers/mlp/\2",
    r"model\.layers\.(\d+)\.input_layernorm": "layers/attn_norm/scale",
    r"model\.layers\.(\d+)\.post_attention_layernorm": "layers/mlp_norm/scale",
}
PARTS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    """(the model, its weights, what PEFT computed)."""
    python = request.config.getoption("--reference-python")
    path = fixture_folder("adapters", python, tmp_path_factory.mktemp("reference"))
    family, cfg = folder.read_config(path)
    with np.load(path / "reference.npz") as found:
        return unpadded(cfg).make(), read(family, cfg, folder.open_weights(path)), dict(found)


def ours(name: str) -> tuple[str, tuple[int, ...], str]:
    """(path of a weight, its layer where it has one, part) of PEFT's name of a tensor."""
    module, part = re.fullmatch(r"(.*?)\.(lora_\w+|modules_to_save)(?:\.weight)?", name).groups()
    for pattern, path in MODULES.items():
        if found := re.fullmatch(pattern, module):
            layer = (int(found[1]),) if found.groups() else ()
            return found.expand(path), layer, PARTS.get(part, "whole")
    raise AssertionError(name)


def as_ours(arrays: dict, prefix: str, spec: dict) -> dict[str, np.ndarray]:
    """PEFT's tensors by our paths, in our shapes."""
    out = {}
    for name, x in arrays.items():
        if name.startswith(prefix):
            path, layer, part = ours(name.removeprefix(prefix))
            at = f"adapters/default/{path}/{part}"
            # A whole table lies as ours does; of all others the last dimension of theirs is the
            # input.
            x = x if part == "whole" else x.T
            out.setdefault(at, np.zeros(spec[at].shape, np.float32))[layer] = x.reshape(spec[at].shape[len(layer) :])
    return out


@pytest.mark.slow
# The adapters of tables stand in dora_tables, those of products in lora.
@pytest.mark.parametrize("case", few(CASES, "lora", "dora_tables", "patterns"))
def test_logits_and_gradients_are_pefts(case, reference):
    base, weights, arrays = reference
    model = CASES[case].adapt(base)
    spec = params.paths(model.spec)
    values = as_ours(arrays, f"{case}/value/", spec)
    assert values.keys() == {path for path, p in spec.items() if p.trainable}
    flat = params.paths(weights)
    woven = params.paths(model.parts.read(weights | {"adapters": params.from_paths(values)["adapters"]}, None))
    for path, x in values.items():
        weight, part = path.removeprefix("adapters/default/").rsplit("/", 1)
        if part == "whole":  # ours is what it differs by from the base
            values[path] = x - np.asarray(flat[weight])
        if part == "magnitude":
            node = woven[weight]
            values[path] = x - np.asarray(node.norms(node.low[0]))
    trained, tokens, targets = params.from_paths(values), arrays["tokens"], arrays["targets"]

    def loss(trained):
        logits = model.apply(weights | trained, {"tokens": tokens}).value
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
        return -picked.sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    scale = np.abs(arrays[f"{case}/logits"]).max()
    assert np.abs(logits - arrays[f"{case}/logits"]).max() <= 1e-5 * scale
    for path, want in as_ours(arrays, f"{case}/gradient/", spec).items():
        got = params.paths(gradients)[path]
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want), path
    of_base = jax.jit(base.apply)
    merged = of_base(merge(model, weights | trained), {"tokens": tokens}).value
    assert np.abs(merged - logits).max() <= 1e-5 * scale
    assert np.abs(of_base(weights, {"tokens": tokens}).value - logits).max() > 1e-2 * scale
