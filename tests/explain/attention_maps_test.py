"""Attention maps are transformers' own, whatever computes the attention, and roll out to shares."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.explain import attention_maps
from bigmodel_jax.models import MODELS, compute

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from reference import load

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def theirs(request, tmp_path_factory):
    path, python = HERE / "fixtures" / "attentions.npz", request.config.getoption("--reference-python")
    if python:
        path = tmp_path_factory.mktemp("attentions") / "attentions.npz"
        subprocess.run([python, str(HERE / "make_attentions.py"), str(path)], check=True)
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_maps_are_those_of_transformers(theirs, name):
    found = load(HERE.parent / "parity" / "fixtures" / name)
    maps = attention_maps.maps(found.model, found.tree, {"tokens": jnp.asarray(theirs["tokens"])})
    np.testing.assert_allclose(maps, theirs[name], atol=2e-6)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-6)


@pytest.mark.slow
def test_a_kernel_without_weights_gives_those_of_the_definition():
    cfg = dataclasses.replace(MODELS["llama"].tiny(), window=3)
    tree, batch = params.init(cfg.make().spec, jax.random.key(0)), {"tokens": jnp.arange(8)[None]}
    chunked = attention_maps.maps(compute.changed(cfg, attention="chunked").make(), tree, batch)
    plain = attention_maps.maps(cfg.make(), tree, batch)
    np.testing.assert_array_equal(chunked[0], plain[0])
    np.testing.assert_allclose(chunked, plain, atol=1e-6, err_msg="what goes into later layers comes out of the kernel")
    far = np.arange(8)[:, None] - np.arange(8)[None] >= 3
    assert not np.asarray(chunked)[..., far].any()
    assert (np.asarray(chunked)[..., ~far & np.tri(8, dtype=bool)] > 0).all()


def test_a_model_whose_layers_do_not_attend_is_one_line():
    model = MODELS["mlp"].tiny().make()
    with pytest.raises(ValueError, match="no layer has 'weights'"):
        attention_maps.maps(model, params.init(model.spec, jax.random.key(0)), {"image": jnp.zeros((1, 8, 8, 1))})


def test_rollout_multiplies_the_layers_with_their_residuals():
    a, b = (np.random.default_rng(n).dirichlet(np.ones(4), (2, 4)).astype(np.float32) for n in (0, 1))
    found = attention_maps.rollout(jnp.stack([a, b]))
    one, two = ((x.mean(0) + np.eye(4)) / 2 for x in (a, b))
    np.testing.assert_allclose(found, two @ one, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
