"""CLIP and SigLIP have the published sizes, start as published, and read texts as they were trained
to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import clip, siglip
from bigmodel_jax.pretrained import clip as clip_files
from bigmodel_jax.pretrained import siglip as siglip_files

CLIP, SIGLIP = clip.CLIPConfig.tiny(), siglip.SiglipConfig.tiny()

# Counted by transformers 5.23.0: CLIPModel and SiglipModel of the published configs on the meta
# device.
PUBLISHED = {
    "clip-vit-b/32": 151_277_313,
    "clip-vit-b/16": 149_620_737,
    "clip-vit-l/14": 427_616_513,
    "siglip-b/16-224": 203_155_970,
    "siglip-l/16-256": 652_150_786,
    "siglip-so400m/14-384": 877_960_498,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count((clip.PRESETS | siglip.PRESETS)[name].make().spec) == PUBLISHED[name]


def started(cfg, seed=0):
    sizes = {"embed_dim": 128, "mlp_dim": 320, "num_heads": 4, "num_layers": 3}
    wide = dataclasses.replace(
        cfg, vision=dataclasses.replace(cfg.vision, **sizes), text=dataclasses.replace(cfg.text, **sizes)
    )
    return params.paths(params.init(wide.make().spec, jax.random.key(seed)))


def check(tree, stds):
    """Every path that ends with a key has that standard deviation; all others are norms and
    biases."""
    for path, x in tree.items():
        std = next((s for end, s in stds.items() if path.endswith(end)), None)
        if std is not None:
            assert float(x.std()) == pytest.approx(std, rel=5 / x.size**0.5), path
            assert abs(float(x.mean())) < 5 * std / x.size**0.5, path
        elif not path.startswith("logit"):
            assert (x == (1.0 if path.endswith("scale") else 0.0)).all(), path


def test_clip_starts_as_transformers_does():
    """The distributions are those of CLIPPreTrainedModel._init_weights; the temperature is the
    paper's 0.07."""
    tree, base, deep = started(CLIP), 128**-0.5, 6**-0.5
    check(
        tree,
        {
            **dict.fromkeys(("attn/q", "attn/k", "attn/v", "down/kernel"), base * deep),
            "attn/o": base,
            "up/kernel": 256**-0.5,
            **dict.fromkeys(("positions", "patches/kernel", "embed/table"), 0.02),
            **dict.fromkeys(("cls", "head/kernel"), base),
        },
    )
    assert float(jnp.exp(tree["logit_scale"])) == pytest.approx(1 / 0.07, rel=1e-4)


@pytest.mark.exhaustive
def test_siglip_starts_as_transformers_does():
    """The distributions are those of SiglipPreTrainedModel._init_weights. Scale and bias are the
    paper's, because transformers' zeros are only placeholders for a checkpoint."""
    tree, base = started(SIGLIP), 128**-0.5
    pool = dict.fromkeys(("pool/attn/q", "pool/attn/k", "pool/attn/v"), (2 / 512) ** 0.5) | {"pool/attn/o": base}
    check(
        tree,
        pool
        | {
            **dict.fromkeys(("attn/q", "attn/k", "attn/v", "attn/o"), (2 / 256) ** 0.5),
            **dict.fromkeys(("up/kernel", "down/kernel"), (2 / 448) ** 0.5),
            **dict.fromkeys(("up/bias", "down/bias"), 1e-6),
            **dict.fromkeys(("positions", "embed/table", "head/kernel"), base),
            "patches/kernel": 0.25,
            "probe": (2 / 129) ** 0.5,
        },
    )
    assert float(jnp.exp(tree["logit_scale"][0])) == pytest.approx(10, rel=1e-4)
    assert float(tree["logit_bias"][0]) == -10


def texts(rng, rows=3, length=12):
    tokens = rng.integers(3, 60, (rows, length)).astype(np.int32)
    return {"image": rng.random((rows, 8, 8, 1), np.float32), "tokens": tokens}


def test_clip_reads_up_to_the_first_end_of_text():
    batch = texts(np.random.default_rng(0))
    batch["tokens"][:, 5] = CLIP.eos_token_id
    tree = params.init(CLIP.make().spec, jax.random.key(0))
    apply = jax.jit(lambda batch: CLIP.make().apply(tree, batch).value)
    changed = dict(batch, tokens=batch["tokens"].copy())
    changed["tokens"][:, 6:] = CLIP.eos_token_id
    np.testing.assert_allclose(apply(changed), apply(batch), atol=1e-6)
    changed["tokens"][:, 4] = 1
    assert np.abs(apply(changed) - apply(batch))[:, 1].max() > 1e-4


def test_clip_files_with_end_of_text_2_mean_the_highest_id():
    """transformers reads such files in this way to this day."""
    batch, old = texts(np.random.default_rng(0)), dataclasses.replace(CLIP, eos_token_id=2)
    batch["tokens"][:, 5] = 63
    tree = params.init(CLIP.make().spec, jax.random.key(0))
    np.testing.assert_array_equal(old.make().apply(tree, batch).value, CLIP.make().apply(tree, batch).value)


@pytest.mark.parametrize(("cfg", "files"), [(CLIP, clip_files), (SIGLIP, siglip_files)])
def test_config_round_trip(cfg, files):
    assert files.from_hf(files.to_hf(cfg)) == cfg


@pytest.mark.parametrize("files", [clip_files, siglip_files])
def test_what_a_config_file_leaves_out_is_the_published_base_model(files):
    presets = {clip_files: clip.CLIPConfig(), siglip_files: siglip.SiglipConfig()}
    assert files.from_hf({"vision_config": {}, "text_config": {}}) == presets[files]


def test_impossible_sizes_are_refused():
    odd = dataclasses.replace(CLIP, text=dataclasses.replace(CLIP.text, num_heads=5))
    with pytest.raises(ValueError, match=r"model\.text\.num_heads = 5 does not divide model\.text\.embed_dim = 32"):
        odd.validate(ParallelConfig())
    with pytest.raises(ValueError, match=r"model\.text\.vocab_size = 64 is not divisible by parallel\.tensor = 3"):
        flat = {"num_heads": 3, "embed_dim": 33, "mlp_dim": 66}
        towers = {n: dataclasses.replace(getattr(CLIP, n), **flat) for n in ("vision", "text")}
        dataclasses.replace(CLIP, **towers).validate(ParallelConfig(tensor=3))


def test_a_text_that_is_too_long_is_refused():
    tree = params.init(CLIP.make().spec, jax.random.key(0))
    with pytest.raises(ValueError, match=r"model\.text\.max_seq_len = 16, but texts have 17 tokens"):
        CLIP.make().apply(tree, texts(np.random.default_rng(0), length=17))
