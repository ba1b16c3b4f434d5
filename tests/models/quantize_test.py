"""A model whose weights are stored in 8 or 4 bits: what it computes, and which parameters are
stored how."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.adapters_test import batch_of

from bigmodel_jax.core import params
from bigmodel_jax.core.channels import Channels
from bigmodel_jax.core.storage import Blocks, Dense, dense, stored
from bigmodel_jax.models import MODELS, LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.models.mixtral import MixtralConfig
from bigmodel_jax.models.quantize import QuantizeConfig
from bigmodel_jax.nn import linear, stack

FAST = {"llama"}
MARKED = [
    n if n in FAST else pytest.param(n, marks=pytest.mark.slow if n == "t5" else pytest.mark.exhaustive) for n in MODELS
]
TINY = LlamaConfig.tiny()


def storages(config: QuantizeConfig, model=TINY) -> dict[str, params.Param]:
    return params.paths(config.stored(model.make(), "float32").spec)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_every_model_computes_what_it_does_with_the_dense_weights(name):
    cfg = MODELS[name].tiny()
    base = cfg.make()
    model = QuantizeConfig("int8").stored(base, "float32")
    weights = jax.jit(base.init or functools.partial(params.init, base.spec))(jax.random.key(0))
    kept = params.map_spec(lambda p, x: p.storage.pack(x), model.spec, weights)
    plain = jax.tree.map(lambda x: dense(x, "float32"), kept, is_leaf=stored)
    batch = batch_of(cfg)
    assert any(p.storage != Dense() for p in params.paths(model.spec).values())
    got, want = (
        jax.jit(lambda tree, m=m: m.apply(tree, batch).value)(tree) for m, tree in ((model, kept), (base, plain))
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


def products(x: np.ndarray, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What int8 by int8 gives, in float64; scale: of the rows of x."""
    top = np.abs(w).reshape(-1, w.shape[-1]).max(0) / 127
    whole = np.clip(np.round(x / scale), -127, 127).reshape(len(x), -1) @ np.round(w / top).reshape(-1, w.shape[-1])
    return whole * scale.reshape(-1, 1) * top


@pytest.mark.parametrize("static", [False, True])
def test_products_of_int8_round_their_inputs_by_rows_or_by_a_calibrated_scale(static):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 3, 4)).astype(np.float32), rng.standard_normal((3, 4, 6)).astype(np.float32)
    storage = Channels(0, 2, static)
    node = storage.calibrated(jnp.asarray(w), jnp.float32(2.0)) if static else storage.pack(jnp.asarray(w))
    scale = np.full((5, 1, 1), 2.0 / 127) if static else np.abs(x).max((1, 2), keepdims=True) / 127
    np.testing.assert_allclose(linear.project(x, node, num_dims=2), products(x, w, scale), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_every_models_products_of_int8_are_near_those_of_float32(name):
    if name == "discrete_autoencoder":
        pytest.skip("a vector that moves a little may take another code")
    cfg = MODELS[name].tiny()
    base = cfg.make()
    model = QuantizeConfig("int8_dynamic").stored(base, "float32")
    weights = jax.jit(base.init or functools.partial(params.init, base.spec))(jax.random.key(0))
    kept = params.map_spec(lambda p, x: p.storage.pack(x), model.spec, weights)
    batch = batch_of(cfg)
    got, want = (jax.jit(lambda tree, m=m: m.apply(tree, batch).value)(t) for m, t in ((model, kept), (base, weights)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(a - b).max() <= 0.1 * np.abs(b).max()


def test_matrices_and_tables_are_stored_and_vectors_and_routers_are_not():
    found = storages(QuantizeConfig("int4"))
    assert {p.kind for p in found.values()} == {"constant"}
    assert found["layers/mlp/up"].storage == Blocks("int4", 32, narrow=True)
    assert found["embed/table"].storage == found["head/table"].storage == Blocks("int8", 256, narrow=True)
    assert found["norm/scale"].storage == Dense()
    assert storages(QuantizeConfig("int8"), MixtralConfig.tiny())["layers/router/kernel"].storage == Dense()


def test_tables_and_chosen_parameters_stay_wider():
    found = storages(QuantizeConfig("nf4", block=16, tables="bfloat16", keep="layers/mlp/.*"))
    assert found["embed/table"].dtype == "bfloat16"
    assert found["layers/mlp/down"].storage == Dense()
    assert found["layers/attn/q"].storage == Blocks("nf4", 16, narrow=True)


@pytest.mark.slow
def test_training_that_knows_reads_rounded_weights_and_moves_the_ones_that_are_not():
    base = TINY.make()
    aware = QuantizeConfig("int4", aware=True).stored(base, "float32")
    assert params.table(aware.spec) == params.table(base.spec), "all of it trains"
    weights = jax.jit(functools.partial(params.init, base.spec))(jax.random.key(0))
    kept = params.map_spec(lambda p, x: p.storage.pack(x), QuantizeConfig("int4").stored(base, "float32").spec, weights)
    plain = jax.tree.map(lambda x: dense(x, "float32"), kept, is_leaf=stored)
    batch = batch_of(TINY)

    def loss(model):
        return jax.jit(jax.value_and_grad(lambda tree: jnp.square(model.apply(tree, batch).value).mean()))

    of_base = loss(base)
    (got, slopes), (want, wanted) = loss(aware)(weights), of_base(plain)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), slopes, wanted)
    assert abs(got - of_base(weights)[0]) > 1e-3 * want
    one, other = (jax.jit(aware.apply)(tree, batch).value for tree in (stack.apart(base.spec, weights), weights))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_adapters_and_rounded_inputs_are_refused_in_training():
    with pytest.raises(
        ValueError, match=r"quantize.kind = 'int8' with adapters; a base in 8 or 4 bits is adapters.base"
    ):
        QuantizeConfig("int8").stored(Lora(rank=2).adapt(TINY.make()), "float32")
    with pytest.raises(ValueError, match=r"quantize.aware = True with quantize.kind = 'int8_static'; it must be int8"):
        QuantizeConfig("int8_static", aware=True).stored(TINY.make(), "float32")


@pytest.mark.slow
def test_a_model_computes_in_bfloat16_with_stored_tables():
    model = QuantizeConfig("int8").stored(TINY.make(), "bfloat16")
    weights = jax.jit(functools.partial(params.init, model.spec))(jax.random.key(0))
    half = jax.tree.map(lambda x: x if stored(x) else x.astype(jnp.bfloat16), weights, is_leaf=stored)
    out = jax.eval_shape(model.apply, half, batch_of(TINY))
    assert out.head.x.dtype == jnp.bfloat16


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.27), ("int4", 0.17), ("nf4", 0.17), ("float8", 0.27)])
def test_bytes_of_smollm2(kind, most):
    found = storages(QuantizeConfig(kind), PRESETS["smollm2-135m"])
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params.abstract(found)))
    assert size <= most * 4 * sum(p.size for p in found.values())


def test_what_cannot_be_stored_is_one_line_that_says_the_way_out():
    odd = LlamaConfig(vocab_size=8, num_layers=1, embed_dim=7, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=8)
    match = r"quantize.kind = 'int4': layers/attn/o: storage: int4x32x16 of .* must be even.*; keep = 'layers/attn/o' leaves"
    with pytest.raises(ValueError, match=match):
        storages(QuantizeConfig("int4"), odd)
    assert storages(QuantizeConfig("int4", keep=".*/o|.*/down"), odd)["layers/attn/o"].storage == Dense()
    with pytest.raises(ValueError, match=r"quantize.keep = '\(' is not a regular expression"):
        storages(QuantizeConfig("int8", keep="("))
