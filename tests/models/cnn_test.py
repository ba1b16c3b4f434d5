"""One network through both of Flax's doors: from the same weights, the same numbers in every
respect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from text_axes import axes

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models.cnn import CNNConfig, max_pool
from bigmodel_jax.objectives import Classification

NNX = CNNConfig.tiny()
LINEN = dataclasses.replace(NNX, door="linen")


def batch_of(n=8):
    image = jax.random.uniform(jax.random.key(0), (n, *NNX.image_shape))
    label = jax.random.randint(jax.random.key(1), (n,), 0, NNX.num_classes)
    return {"image": image, "label": label, "weights": jnp.ones((n,))}


def loss(model, p, batch):
    out = Classification().loss(model, p, batch, rng=jax.random.key(2), train=True)
    return out.mean.total / out.mean.count, out.updates


def test_both_doors_declare_the_same_parameters():
    assert params.paths(NNX.make().spec) == params.paths(LINEN.make().spec)


@pytest.mark.slow
def test_both_doors_compute_the_same():
    nnx, linen, batch = NNX.make(), LINEN.make(), batch_of()
    p = nnx.init(jax.random.key(0))  # names are equal, so the weights go over as they are
    evaluate = [jax.jit(lambda p, m=m: m.apply(p, batch).value) for m in (nnx, linen)]
    before = evaluate[0](p)
    np.testing.assert_allclose(before, evaluate[1](p), atol=1e-5)
    results = [jax.jit(jax.value_and_grad(lambda p, m=m: loss(m, p, batch), has_aux=True))(p) for m in (nnx, linen)]
    (_, nnx_updates), nnx_grads = results[0]
    assert len(nnx_updates) == 4
    assert all(np.abs(g).max() > 0 for g in params.paths(params.partition(nnx_grads, nnx.spec)[0]).values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)
    after = params.from_paths(params.paths(p) | nnx_updates)
    np.testing.assert_allclose(evaluate[0](after), evaluate[1](after), atol=1e-5)
    assert not np.allclose(evaluate[0](after), before), "statistics do nothing"


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [NNX, LINEN])
def test_stays_in_bfloat16(cfg):
    """A batch norm that answers in float32 would quietly put every later layer into float32."""
    model = cfg.make()
    trainable, frozen = params.partition(model.init(jax.random.key(0)), model.spec)
    half = params.merge(jax.tree.map(lambda x: x.astype(jnp.bfloat16), trainable), frozen)
    program = jax.make_jaxpr(lambda p: model.apply(p, batch_of(), rng=jax.random.key(0), train=True))(half)
    products = [line for line in str(program).splitlines() if "= conv_general" in line or "= dot_general" in line]
    assert len(products) == 4
    assert all(line.split(":")[1].startswith("bf16") for line in products)
    assert all(
        u.dtype == jnp.float32
        for u in model.apply(half, batch_of(), rng=jax.random.key(0), train=True).updates.values()
    )


@pytest.mark.few("layout0-cfg1")
@pytest.mark.slow
@pytest.mark.parametrize("cfg", [NNX, LINEN])
@pytest.mark.parametrize("layout", [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_layouts_equal_one_device_and_gather_no_activation(cfg, layout):
    model, rules, num = cfg.make(), Rules(), 48
    mesh = sharding.make_mesh(ParallelConfig(**layout))
    placed = sharding.shardings(model.spec, mesh, rules)
    p, batch = model.init(jax.random.key(0)), batch_of(num)
    put = {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, axes(v))) for k, v in batch.items()}

    def step(p, batch):
        return jax.value_and_grad(lambda p: loss(model, p, batch), has_aux=True)(p)

    with sharding.use(mesh, rules):
        sharded = jax.jit(step, out_shardings=((None, None), placed)).lower(jax.device_put(p, placed), put).compile()
    for a, b in zip(
        jax.tree.leaves(sharded(jax.device_put(p, placed), put)), jax.tree.leaves(jax.jit(step)(p, batch)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), b, atol=1e-5)
    gathers = [line for line in sharded.as_text().splitlines() if " all-gather(" in line]
    assert gathers
    assert not [line for line in gathers if f"[{num}," in line], "the whole batch was gathered"


def test_max_pool_is_the_windowed_one():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2), strides=(2, 2)))


def test_too_many_stages_are_refused():
    with pytest.raises(ValueError, match=r"model\.channels = .*halve"):
        dataclasses.replace(NNX, channels=(8, 8, 8, 8)).validate(ParallelConfig())
