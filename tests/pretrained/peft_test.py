"""PEFT folders: read into our parameters' adapters and written again, with every key of
adapter_config.json accounted for."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigmodel_jax.core import params
from bigmodel_jax.pretrained import folder, peft, peft_config
from bigmodel_jax.pretrained.family import spec_by_path

HERE = Path(__file__).parent
BASE = HERE.parent / "parity/fixtures/llama"
FOLDERS = HERE / "fixtures/peft"
KINDS = sorted(p.name for p in FOLDERS.iterdir())
# What peft_reference.py draws (torch's generator).
TOKENS = [[35, 5, 39, 1, 69, 65, 63, 29, 48], [24, 52, 2, 42, 65, 74, 92, 2, 69]]


@pytest.fixture(scope="module")
def base():
    """The config of the tiny Llama that PEFT adapted."""
    return opened(BASE)


def opened(where):
    """(family, config, spec by path, values by path) of a Hugging Face folder."""
    family, cfg = folder.read_config(where)
    spec = spec_by_path(cfg)
    source = folder.open_weights(where)
    values = {}
    for path, p in spec.items():
        whole = tuple(slice(None) for _ in p.shape)
        (values[path],) = folder.names.to_ours(family.rows, spec, cfg, source, path, [whole], "float32").values()
    return family, cfg, spec, values


def read(path, base):
    family, cfg, spec, values = base
    return peft.read(path, family, spec, cfg, values)


def merged(found, base):
    """Merges the adapters into the weights, in float64 as LoRA (arXiv 2106.09685, eq. 3) and DoRA
    (2402.09353, eq. 5) say."""
    family, cfg, spec, values = base
    out = dict(values) | dict(found.saved)
    lying = {path: module for module in peft.modules(family, spec, cfg).values() for path in module.paths}
    for path, m in found.matrices.items():
        scale = m.alpha / (m.rank**0.5 if found.rslora else m.rank)
        w = out[path].reshape(m.a.shape[:-1] + m.b.shape[-1:]) if not path.startswith("head") else out[path].T
        assert lying[path].inside == m.a.shape[-2]
        w = w + scale * (m.a.astype(np.float64) @ m.b.astype(np.float64))
        if m.magnitude is not None:
            w = w / np.linalg.norm(w, axis=-2, keepdims=True) * m.magnitude[..., None, :]
        out[path] = (w if not path.startswith("head") else w.T).reshape(out[path].shape)
    return params.from_paths({path: jnp.asarray(x, jnp.float32) for path, x in out.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_pefts_logits_are_those_of_the_adapters_that_were_read(kind, base):
    want = np.load(FOLDERS / kind / "logits.npy")
    ours = base[1].make().apply(merged(read(FOLDERS / kind, base), base), {"tokens": jnp.asarray(TOKENS)}).value
    plain = base[1].make().apply(params.from_paths(base[3]), {"tokens": jnp.asarray(TOKENS)}).value
    assert np.abs(plain - want).max() > 0.1 * np.abs(want).max(), "the adapters change something"
    assert np.abs(ours - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_holds_the_same_bits_under_the_same_names(kind, base, tmp_path):
    family, cfg, spec, _ = base
    found = read(FOLDERS / kind, base)
    peft.write(found, tmp_path, family, spec, cfg)
    ours, theirs = load_file(tmp_path / peft.WEIGHTS), load_file(FOLDERS / kind / peft.WEIGHTS)
    theirs = {name: x for name, x in theirs.items() if "base_layer" not in name}
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)
    again = read(tmp_path, base)
    assert {p: (m.rank, m.alpha) for p, m in again.matrices.items()} == {
        p: (m.rank, m.alpha) for p, m in found.matrices.items()
    }
    assert (again.rslora, again.dropout) == (found.rslora, found.dropout) == (kind == "rslora", 0.1)


def test_the_parts_of_a_folder_lie_by_our_paths(base):
    found = read(FOLDERS / "patterns", base)
    assert {path: (m.rank, m.alpha) for path, m in found.matrices.items()} == {
        "layers/attn/q": (4, 8),
        "layers/attn/v": (2, 3),
    }
    assert not found.matrices["layers/attn/q"].a[0].any(), "layer 0 of q is excluded"
    assert read(FOLDERS / "rslora", base).matrices.keys() == {
        *(f"layers/attn/{name}" for name in "qkvo"),
        *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
    }
    assert read(FOLDERS / "embedding", base).saved.keys() == {"head/table"}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("bias", "lora_only", 'bias = "lora_only" is not supported; supported: "none"'),
        ("peft_type", "LOHA", 'peft_type = "LOHA" is not supported; supported: "LORA"'),
        ("lora_bias", True, "lora_bias = true is not supported; supported: false"),
        ("target_parameters", ["experts.w"], "target_parameters = .* is not supported; supported: null or \\[\\]"),
        ("trainable_token_indices", [3], "trainable_token_indices = .* is not supported"),
        ("layer_replication", [[0, 2]], "layer_replication = .* is not supported"),
        ("alora_invocation_tokens", [1], "alora_invocation_tokens = .* is not supported"),
        ("init_lora_weights", "pissa_niter_4", "changes the base, which is not in this folder"),
        ("r", 0, "r = 0; allowed: a whole number, 1 or more"),
        ("r", "8", 'r = "8"; allowed'),
        ("lora_alpha", None, "lora_alpha = null; allowed: a number above 0"),
        ("lora_dropout", 1.5, "lora_dropout = 1.5; allowed: a number from 0 to below 1"),
        ("use_rslora", 1, "use_rslora = 1; allowed: true or false"),
        ("target_modules", 3, "target_modules = 3; allowed: a list of names"),
        ("target_modules", "(", r"'\(' is no pattern"),
        ("rank_pattern", {"v_proj": "x"}, "rank_pattern = .*; allowed: a table of patterns and ranks"),
        ("rank_pattern", {"layers.1.self_attn.v_proj": 2}, "has rank 2 and alpha 8; layers of one stack take one rank"),
        ("brand_new", 7, "brand_new = 7 is unknown here; supported: files without it"),
        ("target_modules", ["q_proj"], "v_proj.lora_A.weight, .* and 1 more are of another base, or of a module that"),
        ("target_modules", ["q_proj", "v_proj", "o_proj"], "o_proj.lora_A.weight is missing"),
        ("use_dora", True, "q_proj.lora_magnitude_vector is missing"),
        (
            "r",
            5,
            r"lora_A.weight has shape \(4, 32\), but this base needs \(5, 32\); these adapters belong to another base",
        ),
    ],
)
def test_a_key_that_changes_what_is_computed_is_used_or_refused(key, value, says, base, tmp_path):
    shutil.copytree(FOLDERS / "lora", tmp_path / "lora")
    path = tmp_path / "lora" / peft_config.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=says) as error:
        read(tmp_path / "lora", base)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "lora") in str(error.value)


def test_every_key_that_peft_writes_is_in_a_table():
    for kind in KINDS:
        keys = json.loads((FOLDERS / kind / peft_config.FILE).read_text()).keys()
        assert keys <= peft_config.INERT | peft_config.NEUTRAL.keys() | peft_config.KINDS.keys()


def test_modules_are_saved_by_the_ends_of_their_names(base, tmp_path):
    """PEFT's `norm` saves every module whose name ends in "norm"; `layers.1.mlp` saves all modules
    inside it."""
    config = peft_config.PeftConfig(modules_to_save=["norm", "layers.1.mlp"])
    saved = ["model.norm", "model.layers.0.input_layernorm", "model.layers.1.mlp.up_proj"]
    assert all(map(config.saves, saved))
    assert not any(map(config.saves, ["lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp2.up_proj"]))


def test_layers_that_are_not_saved_are_the_bases(base, tmp_path):
    shutil.copytree(FOLDERS / "lora", tmp_path / "lora")
    weights, about = tmp_path / "lora" / peft.WEIGHTS, tmp_path / "lora" / peft_config.FILE
    gate = np.arange(base[3]["layers/mlp/gate"][1].size, dtype="f").reshape(base[3]["layers/mlp/gate"][1].T.shape)
    save_file(load_file(weights) | {f"{peft.PREFIX}model.layers.1.mlp.gate_proj.weight": gate}, weights)
    more = {"modules_to_save": ["layers.1.mlp.gate_proj"], "target_parameters": []}
    about.write_text(json.dumps(json.loads(about.read_text()) | more))
    saved = read(tmp_path / "lora", base).saved["layers/mlp/gate"]
    np.testing.assert_array_equal(saved, np.stack([base[3]["layers/mlp/gate"][0], gate.T]))


def test_an_adapter_of_a_head_that_is_the_embeddings_table_is_one_line(base, tmp_path):
    family, cfg, _, values = base
    shutil.copytree(FOLDERS / "lora", tmp_path / "lora")
    weights, about = tmp_path / "lora" / peft.WEIGHTS, tmp_path / "lora" / peft_config.FILE
    head = {f"{peft.PREFIX}lm_head.lora_A.weight": np.ones((4, 32), "f")}
    save_file(load_file(weights) | head, weights)
    about.write_text(json.dumps(json.loads(about.read_text()) | {"target_modules": ["q_proj", "v_proj", "lm_head"]}))
    tied = dataclasses.replace(cfg, tied_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head\.lora_A\.weight is not read: the base's head is the table of its"):
        peft.read(tmp_path / "lora", family, params.paths(tied.make().spec), tied, values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {name.replace("q_proj", "c_attn"): x for name, x in t.items()}, "lora_A.weight is missing"),
        (
            lambda t: {n.removeprefix("base_model.model."): x for n, x in t.items()},
            "does not begin with base_model.model.",
        ),
        (lambda t: {n: x * np.nan for n, x in t.items()}, "holds values that are not finite"),
        (lambda t: {n: x.astype(np.int32) for n, x in t.items()}, "holds int32, which are no weights"),
        (lambda t: {n: np.tile(x, 2) for n, x in t.items()}, "these adapters belong to another base"),
    ],
    ids=["name", "prefix", "nan", "integers", "shape"],
)
def test_tensors_that_do_not_fit_the_base_are_one_line(change, says, base, tmp_path):
    shutil.copytree(FOLDERS / "lora", tmp_path / "lora")
    path = tmp_path / "lora" / peft.WEIGHTS
    save_file(change(load_file(path)), path)
    with pytest.raises(ValueError, match=says) as error:
        read(tmp_path / "lora", base)
    assert "\n" not in str(error.value)


def test_an_embedding_beside_its_adapter_must_be_the_bases(base, tmp_path):
    family, cfg, spec, values = base
    other = values | {"embed/table": values["embed/table"] + 1}
    with pytest.raises(ValueError, match=r"embed_tokens\.base_layer\.weight is not the base's; .* to another base"):
        peft.read(FOLDERS / "embedding", family, spec, cfg, other)


@pytest.mark.slow
def test_a_pickle_is_not_opened(base, tmp_path):
    shutil.copytree(FOLDERS / "lora", tmp_path / "lora")
    (tmp_path / "lora" / peft.WEIGHTS).rename(tmp_path / "lora/adapter_model.bin")
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors \(adapter_model\.bin is a pickle"):
        read(tmp_path / "lora", base)
