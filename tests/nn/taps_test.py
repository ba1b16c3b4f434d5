"""What is tapped is what the layers give one by one, and who does not ask has the program without
taps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import MODELS, compute
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.taps import tap, tapped

BATCH = {"tokens": jnp.asarray(np.arange(22, dtype=np.int32).reshape(2, 11) % 7)}


def one_by_one(model, tree, change=lambda layer: layer) -> list[jax.Array]:
    """The input of the first layer and the output of each, without `stack`. change: a function of a
    layer's parameters. Its effect reaches that layer's output and not the next layer."""
    parts, outside = model.parts, model.parts.outside(tree)
    entry = parts.enter(outside, BATCH, rng=None, train=False, cache=None)
    block, x, found = functools.partial(parts.block, train=False), entry.x, [entry.x]
    for n in range(3):
        layer, xs = jax.tree.map(lambda w, n=n: w[n], (tree["layers"], entry.xs))
        found.append(block(change(layer), x, xs, *entry.shared, *entry.whole)[0])
        x, _ = block(layer, x, xs, *entry.shared, *entry.whole)
    return found


def attention_of_llama(model, tree) -> list[jax.Array]:
    """What a layer adds without its MLP."""
    silent = one_by_one(model, tree, lambda layer: layer | {"mlp": jax.tree.map(jnp.zeros_like, layer["mlp"])})[1:]
    return [after - before for after, before in zip(silent, one_by_one(model, tree)[:-1], strict=True)]


def attention_of_bert(model, tree) -> list[np.ndarray]:
    """The attention weights of each layer's input, in numpy."""
    found = []
    for n, x in enumerate(one_by_one(model, tree)[:-1]):
        p = {name: np.asarray(w[n]) for name, w in tree["layers"]["attn"].items()}
        q, k, v = (np.einsum("btd,dhe->bthe", x, p[name]) + p[f"{name}_bias"] for name in "qkv")
        logits = np.einsum("bthe,bshe->bhts", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        h = np.einsum("bhts,bshe->bthe", weights / weights.sum(-1, keepdims=True), v)
        found.append(np.einsum("bthe,hed->btd", h, p["o"]) + p["o_bias"])
    return found


@pytest.mark.few("llama-attention_of_llama-change1")
@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"remat": "full"}, {"unroll": True}])
@pytest.mark.parametrize(("name", "attention"), [("llama", attention_of_llama), ("bert", attention_of_bert)])
def test_taps_are_what_the_layers_give_one_by_one(name, attention, change):
    model = compute.changed(dataclasses.replace(MODELS[name].tiny(), num_layers=3), **change).make()
    tree = params.init(model.spec, jax.random.key(0))
    out, found = jax.jit(tapped(model.apply, "residual", "attention"))(tree, BATCH)
    np.testing.assert_array_equal(out.value, jax.jit(model.apply)(tree, BATCH).value)
    assert set(found) == {"residual", "attention"}
    np.testing.assert_allclose(found["residual"], jnp.stack(one_by_one(model, tree)[1:]), atol=1e-5)
    np.testing.assert_allclose(found["attention"], jnp.stack(attention(model, tree)), atol=1e-5)


def test_layers_of_another_kind_in_front_are_the_first():
    model = MODELS["deepseek"].tiny().make()
    _, found = jax.eval_shape(tapped(model.apply, "residual", "attention"), params.abstract(model.spec), BATCH)
    assert found["residual"].shape == found["attention"].shape == (3, 2, 11, 32)


@pytest.mark.slow
def test_a_gradient_goes_through_taps():
    model = MODELS["llama"].tiny().make()
    tree = params.init(model.spec, jax.random.key(0))
    gradient = jax.grad(lambda tree: jnp.sum(tapped(model.apply, "residual")(tree, BATCH)[1]["residual"][0] ** 2))(tree)
    of_layers = np.abs(gradient["layers"]["attn"]["q"]).sum((1, 2, 3))
    assert of_layers[0] > 0
    assert of_layers[1] == 0, "nothing that comes after a layer moves what leaves it"


def block(p, x, _):
    first, second = tap("h", x * p), tap("h", x + p)
    return first + second, None


def test_a_second_tap_of_a_name_has_a_number_and_nothing_is_left_behind():
    run = functools.partial(stack.run, block, jnp.arange(1.0, 4.0), jnp.ones(2))
    (x, _), found = tapped(run, "h")()
    np.testing.assert_array_equal(found["h"][:, 0], [1, 6, 33])
    np.testing.assert_array_equal(found["h/1"][:, 0], [2, 5, 14])
    np.testing.assert_array_equal(x, run()[0])
    with pytest.raises(
        ValueError, match=r"no layer has 'residul'; allowed: h, residual \(perhaps you meant 'residual'\)"
    ):
        tapped(run, "residul")()


def test_who_does_not_ask_has_the_program_without_taps(monkeypatch):
    model = MODELS["llama"].tiny().make()
    tree = params.abstract(model.spec)
    before = jax.jit(model.apply).lower(tree, BATCH).as_text()
    jax.jit(tapped(model.apply, "attention", "weights")).lower(tree, BATCH)
    monkeypatch.setattr("bigmodel_jax.nn.attention.attention.tap", lambda name, x: x)
    assert jax.jit(MODELS["llama"].tiny().make().apply).lower(tree, BATCH).as_text() == before


def test_two_stacks_of_other_shapes_are_one_line():
    def both():
        return stack.run(block, jnp.ones(2), jnp.ones(2)), stack.run(block, jnp.ones(2), jnp.ones(3))

    with pytest.raises(ValueError, match="'h' has different shapes in two stacks of layers"):
        tapped(both, "h")()


def test_a_pipeline_is_refused_in_one_line():
    parallel = ParallelConfig(data=1, stage=2)
    mesh = sharding.make_mesh(parallel, jax.devices()[:2])
    with sharding.use(mesh, parallel.rules, parallel), pytest.raises(ValueError, match="taps need a mesh of one stage"):
        jax.eval_shape(tapped(lambda: stack.run(block, jnp.ones(2), jnp.ones((2, 2))), "h"))
