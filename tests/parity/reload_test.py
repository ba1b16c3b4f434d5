"""Exports loaded by transformers or diffusers: our logits, for configs near its defaults and far.

With --reference-python the exports are loaded live; --update-golden then writes
fixtures/<name>/exports.json (each export's config.json, and a digest of its tensors) and
fixtures/<name>/exports.npz (what the reference computed with it). Without it, the export must be
what those fixtures hold, byte for byte, and our logits are compared with theirs.

Tolerance 1e-4 absolute, as where the reference's own files are read.
"""

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax import models
from bigmodel_jax.core import params
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.nn.position import LongRope, RopeScaling
from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.transfer import family_of
from reference import HERE, load

TOLERANCE = 1e-4
# Others hold objectives and adapters of these.
SOURCES = sorted(
    p.parent.name for p in HERE.glob("fixtures/*/config.json") if (p.parent / "gradients.safetensors").exists()
)
NONE = RopeScaling()
LINEAR = RopeScaling("linear", 3.0, 64)
LLAMA3 = RopeScaling("llama3", 5.3, 24, low_freq_factor=0.7, high_freq_factor=2.1)
YARN = RopeScaling("yarn", 4.0, 16, beta_fast=3.0, beta_slow=0.5)
YARN_FACTOR = RopeScaling("yarn", 4.0, 16, attention_factor=0.7, truncate=False)
SHORT_ROPE = LongRope((1.3, 1.9), (2.0, 3.0), original_max_seq_len=32, attention_factor=0.7)
BARE = {"rope_scaling": NONE, "rope_theta": 333.0, "norm_eps": 1e-3}
TEXT = {
    "vocab_size": 96,
    "num_layers": 1,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 48,
}
TEXT["max_seq_len"] = 64
COARSE = VisionTower(1, 32, 4, 48, "gelu_tanh", 1e-3, image_shape=(16, 16, 3), patch_size=8)
# What a fixture's own config does not show: every choice of a family once each way, beside
# transformers' default.
VARIANTS = {
    "llama": {
        "bare": BARE | {"num_kv_heads": 4, "head_dim": 6},
        "tied": {"tied_embeddings": True, "rope_scaling": YARN_FACTOR},
        "llama3": {"rope_scaling": LLAMA3},
    },
    "mistral": {"bare": BARE | {"window": 0}, "tied": {"tied_embeddings": True, "window": 3, "rope_scaling": YARN}},
    "qwen2": {"bare": BARE, "tied": {"tied_embeddings": True, "rope_scaling": YARN}},
    "qwen3": {"bare": BARE | {"tied_embeddings": False, "head_dim": 6}, "scaled": {"rope_scaling": LINEAR}},
    "smollm3": {
        "bare": BARE | {"tied_embeddings": True, "nope_every": 1},
        "other": {"nope_every": 9, "rope_scaling": YARN},
    },
    "olmo2": {
        "bare": BARE | {"num_kv_heads": 4, "head_dim": 6},
        "tied": {"tied_embeddings": True, "rope_scaling": YARN},
    },
    "olmo3": {
        "bare": BARE | {"global_every": 1, "head_dim": 6},
        "other": {"tied_embeddings": True, "window": 3, "global_every": 4},
    },
    "granite": {
        "bare": BARE | {"tied_embeddings": False, "embedding_multiplier": 1.0, "attention_multiplier": 1.0},
        "other": {"residual_multiplier": 1.0, "logits_scaling": 1.0, "rope_scaling": LINEAR},
    },
    "glm4": {
        "bare": BARE | {"qkv_bias": False, "rotary_dim": 16},
        "other": {"tied_embeddings": True, "rotary_dim": 10, "rope_scaling": LINEAR},
    },
    "phi3": {
        "bare": {"long_rope": LongRope(), "rope_theta": 333.0, "norm_eps": 1e-3, "window": 0, "num_kv_heads": 4},
        "other": {"tied_embeddings": True, "window": 3, "rotary_dim": 4, "long_rope": SHORT_ROPE},
    },
    "gemma": {"bare": BARE | {"num_kv_heads": 1}, "scaled": {"rope_scaling": LINEAR, "head_dim": 12}},
    "gemma2": {
        "bare": BARE
        | {"attn_softcap": 0.0, "final_softcap": 0.0, "query_pre_attn_scalar": 0, "window": 0, "global_every": 1},
        "other": {"attn_softcap": 0.7, "final_softcap": 1.3, "query_pre_attn_scalar": 7, "window": 3},
    },
    "gemma3": {
        "bare": BARE | {"query_pre_attn_scalar": 0, "local_rope_theta": 10_000.0},
        "all_global": {"window": 0, "global_every": 1},
        "other": {"final_softcap": 1.5, "query_pre_attn_scalar": 9, "window": 2, "global_every": 2},
    },
    "mixtral": {
        "bare": BARE | {"window": 0, "experts_per_token": 1, "load_balancing_loss": 0.0},
        "tied": {"tied_embeddings": True, "window": 3, "experts_per_token": 3},
    },
    "qwen3_moe": {
        "bare": BARE | {"normalized_weights": False, "load_balancing_loss": 0.0},
        "tied": {"tied_embeddings": True, "normalized_weights": True, "rope_scaling": YARN},
    },
    "qwen3_next": {
        "bare": BARE
        | {"normalized_weights": False, "load_balancing_loss": 0.0, "rotary_dim": 16, "num_value_heads": 2},
        "other": {"tied_embeddings": True, "rotary_dim": 6, "conv_width": 4, "num_layers": 4, "rope_scaling": YARN},
    },
    "gpt_oss": {
        "bare": BARE | {"window": 3, "load_balancing_loss": 0.0},
        "other": {"swiglu_alpha": 0.4, "swiglu_limit": 0.3, "tied_embeddings": True, "experts_per_token": 3},
    },
    "deepseek": {
        "bare": BARE | {"mscale": 0.0, "mscale_all_dim": 0.0, "q_lora_rank": 0, "normalize_weights": False},
        "dense": {"num_dense_layers": 3, "routed_scale": 1.7},
        "sparse": {"num_dense_layers": 0, "num_shared_experts": 2, "groups_per_token": 3},
    },
    "gpt2": {"bare": {"norm_eps": 1e-2, "dropout": 0.3}},
    "bert": {"other": {"num_token_types": 5, "norm_eps": 1e-3, "dropout": 0.3}},
    "bert-classification": {"regression": {"num_classes": 1}},
    "roberta": {"other": {"num_token_types": 3, "norm_eps": 1e-3}},
    "distilbert": {"other": {"dropout": 0.3, "max_seq_len": 30}},
    "distilbert-classification": {"regression": {"num_classes": 1}},
    "electra": {"other": {"table_dim": 32, "num_token_types": 5, "norm_eps": 1e-3, "dropout": 0.3}},
    "electra-classification": {"regression": {"num_classes": 1}},
    "modernbert": {
        "all_global": {"global_every": 1, "norm_eps": 1e-3, "rope_theta": 100.0},
        "other": {"global_every": 9, "window": 1, "local_rope_theta": 50.0, "num_heads": 2},
    },
    "modernbert-encoder": {"one_layer": {"num_layers": 1}},
    "modernbert-classification": {"mean": {"pooling": "mean", "num_classes": 1}},
    "deberta": {"other": {"num_buckets": 16, "norm_eps": 1e-3, "max_seq_len": 30}},
    "xlnet": {"other": {"norm_eps": 1e-3}},
    "t5": {
        "untied": {"tied_embeddings": False, "num_buckets": 6, "max_distance": 9},
        "gated": {"gated": True, "num_decoder_layers": 1, "norm_eps": 1e-3, "decoder_start_token_id": 7},
    },
    "transformer": {"other": {"activation": "gelu", "scale_embedding": False}, "silu": {"activation": "silu"}},
    "bart": {"other": {"activation": "relu", "scale_embedding": True, "forced_bos": False, "num_layers": 1}},
    "vit": {"other": {"activation": "quick_gelu", "norm_eps": 1e-3, "image_shape": (12, 16, 3), "num_classes": 2}},
    "dinov2": {
        "gated": {"gated_mlp": True, "mlp_dim": 88, "norm_eps": 1e-3, "init_std": 0.1},
        "quick_gelu": {"activation": "quick_gelu", "layer_scale": 0.2, "num_classes": 2},
    },
    "dinov2_registers": {"mlp": {"gated_mlp": False, "mlp_dim": 96, "num_registers": 1}},
    "alexnet": {"other": {"num_classes": 2, "pooled_side": 2, "hidden_dim": 16}},
    "vgg": {"other": {"batch_norm": True, "depths": (2, 1), "pooled_side": 3, "num_classes": 2}},
    "resnet": {"other": {"num_classes": 2, "depths": (2, 1, 1)}},
    "segformer": {"other": {"activation": "gelu_tanh", "num_classes": 3, "reductions": (1, 2, 1), "depths": (2, 1, 1)}},
    "dit": {"other": {"zero_init": False}},
    "whisper": {"other": {"num_decoder_layers": 1, "num_heads": 2, "max_seq_len": 12, "activation": "relu"}},
    "conformer": {"other": {"subsampling": 2, "scale_input": False, "conv_width": 3, "vocab_size": 5}},
    "mmdit": {"other": {"zero_init": False, "qk_norm": False, "num_layers": 2, "position_grid": 5}},
    "autoencoder": {"other": {"norm_groups": 2, "blocks_per_level": 2, "channels": (8, 12), "latent_channels": 3}},
    "llava": {
        "full": {"class_token": True, "feature_layer": -1},
        "tied": {
            "connector_bias": False,
            "text": models.LlamaConfig(**TEXT, tied_embeddings=True, rope_scaling=LLAMA3),
        },
    },
    "paligemma": {"other": {"text": models.GemmaConfig(**TEXT | {"num_kv_heads": 1}, rope_theta=333.0, norm_eps=1e-3)}},
    "idefics3": {"tied": {"shuffle": 1, "vision": COARSE, "text": models.LlamaConfig(**TEXT, tied_embeddings=True)}},
}
CASES = [(name, variant) for name in SOURCES for variant in ("given", *VARIANTS.get(name, {}))]
# The other tests of the family compare what a fixture's own config computes.
VARIED = [case for case in CASES if case[1] != "given"]


def config_of(name: str, variant: str):
    cfg = folder.read_config(HERE / "fixtures" / name)[1]
    return dataclasses.replace(cfg, **VARIANTS[name][variant]) if variant != "given" else cfg


def weights(name: str, cfg) -> dict[str, np.ndarray]:
    """Weights by path: those of the fixture, or weights drawn from integers alone, so that every
    machine draws the same."""
    ref = source(name)
    if cfg == ref.cfg:
        return {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    rng, out = np.random.default_rng(0), {}
    for path, param in sorted(params.paths(cfg.make().spec).items()):
        noise = (rng.integers(-(2**20), 2**20, param.shape) / 2**20).astype(np.float32)
        last = path.rpartition("/")[2]
        around = 1.0 if last in ("scale", "var") else 0.0
        out[path] = around + noise * np.float32(0.25 if param.decay or "table" in last else 0.1)
    return out


@functools.cache
def source(name: str):
    return load(HERE / "fixtures" / name)


def batch_of(name: str, cfg) -> dict[str, np.ndarray]:
    """A batch of this package with few rows."""
    arrays = source(name).arrays
    keys = (
        "tokens",
        "token_types",
        "encoder_tokens",
        "image",
        "timestep",
        "label",
        "text_states",
        "text_pooled",
        "segment_ids",
        "log_mel",
    )
    batch = {key: arrays[key][:2] for key in keys if key in arrays}
    if "train/num_frames" in arrays:  # whole rows: what a padded frame gives is no part of either's promise
        return {key: arrays[f"train/{key}"][:2] for key in ("log_mel", "num_frames")}
    if "mask" in arrays and arrays["mask"].ndim == 2:  # of tokens
        batch["segment_ids"] = arrays["mask"][:2]
    if name == "paligemma":
        before = np.arange(batch["tokens"].shape[1]) < arrays["prompt"]
        batch["prefix"] = np.broadcast_to(before, batch["tokens"].shape)
    if getattr(cfg, "class_token", False):  # one image token more
        batch["tokens"] = batch["tokens"].copy()
        batch["tokens"][:, 0] = cfg.image_token_id
    if name in ("vit", "resnet", "resnet_basic", "efficientnet") or name.startswith(
        ("bert", "roberta", "distilbert", "electra", "modernbert", "dinov2", "alexnet", "vgg")
    ):
        batch.pop("label", None)
    return batch


def inputs_of(name: str, batch: dict) -> dict[str, np.ndarray]:
    """The same batch by the reference's names. Its pictures have the channels first."""
    out = {key: np.moveaxis(x, -1, -3) if key == "image" else x for key, x in batch.items()}
    if "prefix" in out:
        out["token_type_ids"] = 1 - out.pop("prefix").astype(np.int64)
    if name in ("dit", "efficientnet", "alexnet", "vgg", "vgg_bn"):
        return out
    names = {"tokens": "input_ids", "token_types": "token_type_ids", "segment_ids": "attention_mask"}
    names |= {"image": "pixel_values", "log_mel": "input_features"}
    out.pop("num_frames", None)
    if "log_mel" in batch:
        names |= {"tokens": "decoder_input_ids"}
        out["log_mel"] = np.moveaxis(out["log_mel"], 1, 2) if "tokens" in batch else out["log_mel"]
    if "encoder_tokens" in batch:
        names |= {"encoder_tokens": "input_ids", "tokens": "decoder_input_ids"}
    if name == "pixart":
        names = {
            "image": "hidden_states",
            "text_states": "encoder_hidden_states",
            "segment_ids": "encoder_attention_mask",
        }
    if name == "mmdit":
        names = {
            "image": "hidden_states",
            "text_states": "encoder_hidden_states",
            "text_pooled": "pooled_projections",
        }
    if name.startswith("autoencoder"):
        names = {"image": "sample"}
    if name == "siglip":
        out.pop("segment_ids")
    return {names.get(key, key): x for key, x in out.items()}


def outputs(name: str, cfg, flat: dict, batch: dict) -> dict[str, np.ndarray]:
    """What our model gives, by the reference's names."""
    batch = {key: jnp.asarray(x, None if x.dtype.kind == "f" else jnp.int32) for key, x in batch.items()}
    value = jax.jit(cfg.make().apply)(params.from_paths({p: jnp.asarray(x) for p, x in flat.items()}), batch).value
    names = {"hidden": "last_hidden_state", "pooled": "pooler_output", "next_sentence": "seq_relationship_logits"}
    if "num_frames" in batch:
        return {"logits": np.asarray(value["logits"])}
    if name == "detr":
        return {"logits": np.asarray(value["logits"]), "pred_boxes": np.asarray(value["boxes"])}
    if isinstance(value, dict):
        return {names.get(key, "prediction_logits"): np.asarray(x) for key, x in value.items()}
    if name.startswith("autoencoder"):
        return {"sample": np.moveaxis(np.asarray(value.image), -1, 1)}
    value = np.asarray(value)
    if getattr(cfg, "head", None) == "question_answering":
        return {"start_logits": value[..., 0], "end_logits": value[..., 1]}
    if getattr(cfg, "head", None) == "replaced_token":
        return {"logits": value[..., 1] - value[..., 0]}
    if isinstance(cfg, models.CLIPConfig | models.SiglipConfig):
        return {"image_embeds": value[:, 0], "text_embeds": value[:, 1]}
    if name in ("dit", "pixart", "mmdit"):
        return {"logits" if name == "dit" else "sample": np.moveaxis(value, -1, 1)}
    return {"logits": np.moveaxis(value, -1, 1) if name == "segformer" else value}


def export(name: str, variant: str, target: Path) -> tuple:
    """(config, weights), and the export as `launch.py export` writes it."""
    cfg = config_of(name, variant)
    family, flat = family_of(cfg), weights(name, cfg)
    folder.save_params(family, cfg, flat, target)
    return cfg, flat


def digest(path: Path) -> str:
    """A digest of names, shapes and values of all tensors."""
    found = hashlib.sha256()
    for tensor, x in sorted(folder.open_weights(path).items()):
        found.update(f"{tensor} {tuple(x.shape)} ".encode() + x.read().tobytes())
    return found.hexdigest()


def written(path: Path) -> dict:
    return {"config": json.loads((path / "config.json").read_text()), "sha256": digest(path)}


def approved(name: str) -> dict:
    return json.loads((HERE / "fixtures" / name / "exports.json").read_text())


@pytest.fixture(scope="module")
def theirs(request, tmp_path_factory):
    """theirs(name, variant): what the reference computes with the export; live for all selected
    cases in one process."""
    python = request.config.getoption("--reference-python")
    if not python:
        return kept
    selected = [item.callspec.params for item in request.session.items if "theirs" in item.fixturenames]
    folders = {}
    for case in selected:
        name, variant = case["name"], case["variant"]
        path = folders[name, variant] = tmp_path_factory.mktemp("exports") / f"{name}-{variant}"
        cfg, _ = export(name, variant, path)
        np.savez(path / "inputs.npz", **inputs_of(name, batch_of(name, cfg)))
    subprocess.run([python, str(HERE / "reload.py"), *map(str, folders.values())], check=True)

    def read(name: str, variant: str) -> dict[str, np.ndarray]:
        with np.load(folders[name, variant] / "reloaded.npz") as arrays:
            return dict(arrays)

    return read


def kept(name: str, variant: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "fixtures" / name / "exports.npz") as arrays:
        return {key.partition("/")[2]: x for key, x in arrays.items() if key.startswith(f"{variant}/")}


def keep(name: str, variant: str, about: dict, arrays: dict) -> None:
    path = HERE / "fixtures" / name
    (path / "exports.json").touch()
    said = json.loads((path / "exports.json").read_text() or "{}") | {variant: about}
    said = {v: said[v] for n, v in CASES if n == name and v in said}
    (path / "exports.json").write_text(json.dumps(said, indent=1) + "\n")
    found = {}
    if (path / "exports.npz").exists():
        with np.load(path / "exports.npz") as before:
            found = {key: x for key, x in before.items() if key.partition("/")[0] in said}
    np.savez_compressed(path / "exports.npz", **found | {f"{variant}/{key}": x for key, x in arrays.items()})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(name, variant) -> (config, weights, folder), exported once for both tests below."""

    @functools.cache
    def make(name: str, variant: str) -> tuple:
        target = tmp_path_factory.mktemp("exported")
        return *export(name, variant, target), target

    return make


@pytest.mark.parametrize(("name", "variant"), few(CASES, *VARIED))
def test_an_export_reloaded_computes_the_same(name, variant, request, theirs, exported, measured):
    cfg, flat, target = exported(name, variant)
    ours, expected = outputs(name, cfg, flat, batch_of(name, cfg)), theirs(name, variant)
    assert set(ours) <= set(expected)
    worst = max(float(np.abs(ours[key] - expected[key]).max()) for key in ours)
    assert all(0.02 < expected[key].std() < 30 for key in ours), "outputs of a scale at which 1e-4 says something"
    assert measured(name.partition("-")[0], "reload", worst) <= TOLERANCE
    if request.config.getoption("--reference-python") and request.config.getoption("--update-golden"):
        keep(name, variant, written(target), {key: expected[key] for key in ours})


@pytest.mark.slow
@pytest.mark.parametrize(("source_name", "variant"), CASES)
def test_an_export_is_the_approved_one(source_name, variant, exported):
    """An export has the keys and tensors of a folder that transformers has read. It may also have
    token ids, because they change no logits."""
    *_, target = exported(source_name, variant)
    found, expected = written(target), approved(source_name)[variant]
    found["config"] = {
        key: x for key, x in found["config"].items() if key in expected["config"] or not key.endswith("token_id")
    }
    assert found == expected, (
        f"reload it: {sys.executable} -m pytest {__file__} --reference-python PATH --update-golden"
    )
