"""A weight with adapters against the merged weight, in every way in which it is read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.nn import head, linear, lora
from bigmodel_jax.nn.lora import Adapted, Low

RANK = 3


def draw(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    """Normal numbers, by numpy: some are drawn at import, where JAX would compile for each."""
    return jnp.asarray(np.float32(scale * np.random.default_rng(seed).standard_normal(shape)))


def node(inner: tuple, outer: tuple, *, lead: tuple = (), dora=False, turned=False, storage=None, **more) -> Adapted:
    """A random weight with one random adapter."""
    w = draw(0, *lead, *(outer + inner if turned else inner + outer))
    magnitude = draw(3, *lead, *outer, scale=0.1) if dora else None
    low = Low(draw(1, *lead, *inner, RANK), draw(2, *lead, RANK, *outer), magnitude, scale=0.5, **more)
    return Adapted(storage.pack(w) if storage else w, (low,), len(inner), turned)


def by_hand(w, a, b, scale, magnitude=None) -> np.ndarray:
    """The merged matrix (I, O) in float64; PEFT's `DoraLinearLayer` has the same."""
    w, a, b = (np.asarray(x, np.float64) for x in (w, a, b))
    merged = w + scale * a @ b
    if magnitude is None:
        return merged
    lengths = np.linalg.norm(w, axis=0) + np.asarray(magnitude, np.float64)
    return merged * lengths / np.linalg.norm(merged, axis=0)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(("inner", "outer"), [((6,), (5,)), ((6,), (2, 4)), ((2, 4), (6,))], ids=str)
def test_a_product_is_that_of_the_merged_weight(inner, outer, dora):
    w = node(inner, outer, dora=dora)
    x = draw(5, 2, 7, *inner)
    (low,) = w.low
    i, o = int(np.prod(inner)), int(np.prod(outer))
    magnitude = low.magnitude.reshape(o) if dora else None
    want = by_hand(w.w.reshape(i, o), low.a.reshape(i, RANK), low.b.reshape(RANK, o), 0.5, magnitude)
    np.testing.assert_allclose(w.dense().reshape(i, o), want, atol=1e-5)
    y = np.asarray(x, np.float64).reshape(2, 7, i) @ want
    np.testing.assert_allclose(linear.project(x, w, len(inner)).reshape(2, 7, o), y, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_embedding_and_its_logits_are_those_of_the_merged_table(dora):
    w, ids, x = node((11,), (6,), dora=dora), jnp.array([[0, 3], [10, 3]]), draw(5, 2, 3, 6)
    (low,) = w.low
    want = by_hand(w.w, low.a, low.b, 0.5, low.magnitude)
    np.testing.assert_allclose(linear.embed({"table": w}, ids), want[np.asarray(ids)], atol=1e-5)
    np.testing.assert_allclose(linear.unembed({"table": w}, x), np.asarray(x) @ want.T, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_heads_table_is_read_as_its_transpose(dora):
    w, x = node((6,), (11,), dora=dora, turned=True), draw(5, 2, 3, 6)
    (low,) = w.low
    want = by_hand(w.w.T, low.a, low.b, 0.5, low.magnitude)
    np.testing.assert_allclose(w.dense().T, want, atol=1e-5)
    np.testing.assert_allclose(linear.unembed({"table": w}, x), np.asarray(x) @ want, atol=1e-4)


def test_rows_of_new_tokens_are_added_to_the_table():
    rows = draw(4, 3, 6)
    w = Adapted(draw(0, 11, 6), (Low(rows=rows, start=8),))
    want = np.asarray(w.w).copy()
    want[8:] += np.asarray(rows)
    ids, x = jnp.arange(11)[None], draw(5, 2, 3, 6)
    np.testing.assert_allclose(w.dense(), want, atol=1e-6)
    np.testing.assert_allclose(linear.embed({"table": w}, ids)[0], want, atol=1e-6)
    np.testing.assert_allclose(linear.unembed({"table": w}, x), np.asarray(x) @ want.T, atol=1e-5)


TABLES = {
    "table": node((64,), (6,)),
    "dora": node((64,), (6,), dora=True),
    "head": node((6,), (64,), turned=True),
    "head-dora": node((6,), (64,), turned=True, dora=True),
    "rows": Adapted(draw(0, 64, 6), (Low(rows=draw(4, 5, 6), start=56),)),
    "whole": Adapted(draw(0, 64, 6), (Low(whole=draw(4, 64, 6)),)),
    "several": Adapted(draw(0, 64, 6), (*node((64,), (6,)).low, *node((64,), (6,), dora=True).low)),
}


@pytest.mark.few("head-dora", "several", "rows")
@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_logits_in_blocks_have_the_loss_and_the_gradients_of_the_merged_table(name):
    table, x, targets = TABLES[name], draw(5, 2, 7, 6), jnp.arange(14).reshape(2, 7) * 4

    def loss(x, low, form):
        w = dataclasses.replace(table, low=low)
        w = w.dense() if form == "merged" else w
        form = "whole" if form == "merged" else form
        return head.cross_entropy(head.Head(x, w, vocab=60), targets, form, columns=24)[0].sum()

    results = {
        form: jax.value_and_grad(loss, argnums=(0, 1))(x, table.low, form) for form in ("merged", "whole", "blocks")
    }
    for form in ("whole", "blocks"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), results[form], results["merged"]
        )


def dots(fn, *args) -> list[str]:
    """Shapes of every product in the compiled program."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    lines = [line.split("=", 1)[1].split()[0] for line in text.splitlines() if " dot(" in line or "custom-call" in line]
    return [line.split("{")[0] for line in lines]


@pytest.mark.parametrize("low", [(), TABLES["table"].low], ids=["alone", "adapter"])
def test_blocks_compute_no_gradient_of_a_frozen_table(low):
    """The product that makes a block's gradient has the shape (D, C). It appears only with a
    trained table."""
    x, targets, w = draw(5, 2, 7, 6), jnp.arange(14).reshape(2, 7), draw(0, 64, 6)

    def loss(x, low, w, frozen):
        table = Adapted(jax.lax.stop_gradient(w), low) if frozen else w
        return head.cross_entropy(head.Head(x, table), targets, "blocks", columns=16)[0].sum()

    frozen = dots(lambda x, low, w: jax.grad(loss, argnums=(0, 1))(x, low, w, True), x, low, w)
    trained = dots(lambda x, w: jax.grad(loss, argnums=(0, 2))(x, low, w, False), x, w)
    own = {"f32[6,16]", "f32[16,6]"}
    assert own & set(trained)
    assert not own & set(frozen), frozen


def test_dropout_is_of_the_adapters_input_alone():
    w = node((6,), (5,), rate=0.5, key=jax.random.key(9))
    x = draw(5, 4, 6)
    (low,) = w.low
    y = linear.project(x, w) - x @ w.w
    kept = jax.random.bernoulli(jax.random.key(9), 0.5, x.shape)
    np.testing.assert_allclose(y, 0.5 * (x * kept / 0.5) @ low.a @ low.b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_base_may_be_stored_in_blocks(dtype):
    w, x = node((8,), (6,), storage=Blocks(dtype, 6)), draw(5, 3, 8)
    (low,) = w.low
    want = by_hand(w.w.dense("float32"), low.a, low.b, 0.5)
    np.testing.assert_allclose(linear.project(x, w), np.asarray(x) @ want, atol=1e-4)
    np.testing.assert_allclose(w.dense(), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "merged"), [(2, False), (3, True)])
def test_on_a_cpu_device_many_rows_meet_one_matrix(rows, merged):
    """The matrix (6, 5) holds 30 numbers, and three rows of inputs and outputs hold 33."""
    w, x = node((6,), (5,)), draw(5, rows, 6)
    (low,) = w.low

    def loss(x, low):
        return jnp.sin(linear.project(x, dataclasses.replace(w, low=(low,)))).sum()

    with sharding.use(sharding.make_mesh(ParallelConfig(), jax.devices()[:1]), Rules()):
        text = str(jax.make_jaxpr(loss)(x, low))
        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, low)
    assert ("name=adapted" in text) is merged
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, jax.grad(loss, argnums=(0, 1))(x, low)
    )


def test_code_that_expects_an_array_reads_the_merged_weight():
    w, x = node((6,), (5,), lead=(2,)), draw(5, 3, 6)
    merged = w.dense()
    assert w.shape == (2, 6, 5)
    assert w.dtype == jnp.float32
    np.testing.assert_array_equal(w[1], merged[1])
    np.testing.assert_array_equal(w.swapaxes(0, 1), merged.swapaxes(0, 1))
    np.testing.assert_allclose(jnp.einsum("bd,edf->bef", x, w), jnp.einsum("bd,edf->bef", x, merged))
    np.testing.assert_allclose(x @ w, x @ merged)


def test_adapters_are_chosen_by_name():
    tree = {"w": 1, "adapters": {"one": 2, "two": 3}}
    assert lora.without_adapters(tree) == {"w": 1}
    assert lora.only(tree, "two") == {"w": 1, "adapters": {"two": 3}}
    with pytest.raises(ValueError, match=r"adapter 'tow' is unknown.*'two'"):
        lora.only(tree, "tow")
