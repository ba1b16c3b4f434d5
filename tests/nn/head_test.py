"""The cross-entropy in blocks equals that of the logits in memory, on every layout, and its program
never holds them."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import head as heads
from bigmodel_jax.nn import rings
from bigmodel_jax.nn.head import Head

B, T, D, V = 8, 6, 16, 200
# By numpy: JAX would compile, in every process that collects tests.
DRAW = np.random.default_rng(0)
X, TABLE, BIAS = (jnp.asarray(np.float32(DRAW.standard_normal(shape))) for shape in ((B, T, D), (V, D), (V,)))
TARGETS = jnp.asarray(np.int32(DRAW.integers(0, V, (B, T))))
WEIGHTS = jnp.asarray(np.float32(DRAW.random((B, T))))
CASES = {
    "plain": {},
    "bias": {"bias": BIAS},
    "softcap": {"softcap": 3.0},
    "both": {"bias": BIAS, "softcap": 3.0},
}
LAYOUTS = {
    "dp": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tp": {"data": 1, "tensor": 8},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
    "seq": {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2},
}


def loss(arrays, form, columns=0, **options):
    """Cross-entropy and z-loss; the same as a training step takes."""
    head = Head(arrays["x"], arrays["table"], arrays.get("bias"), **options)
    nats, log_z, best = heads.cross_entropy(head, TARGETS, form, columns=columns)
    return jnp.sum(nats * WEIGHTS) + 0.1 * jnp.sum(log_z**2 * WEIGHTS), best


def evaluate(form, columns=0, bias=None, **options):
    arrays = {"x": X, "table": TABLE} | ({} if bias is None else {"bias": bias})
    fn = functools.partial(loss, form=form, columns=columns, **options)
    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(fn, has_aux=True))(arrays))


def equal(got, want):
    (value, best), grads = got
    (want_value, want_best), want_grads = want
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    np.testing.assert_array_equal(best, want_best)
    for name, grad in want_grads.items():
        np.testing.assert_allclose(grads[name], grad, rtol=1e-5, atol=1e-6 * np.abs(grad).max(), err_msg=name)


@pytest.mark.parametrize(("case", "columns"), [("plain", 64), ("bias", 200), ("softcap", 7), ("both", 64)])
def test_blocks_equal_the_logits_in_memory(case, columns):
    """64 and 7 do not divide the vocabulary: the last block shares columns with the one before."""
    equal(evaluate("blocks", columns, **CASES[case]), evaluate("whole", **CASES[case]))


@pytest.mark.slow
@pytest.mark.few("fsdp_tp", "seq")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_one_device(layout):
    want = evaluate("whole", **CASES["both"])
    mesh = sharding.make_mesh(ParallelConfig(**LAYOUTS[layout]))
    with sharding.use(mesh, Rules()):
        equal(evaluate("blocks", 24, **CASES["both"]), want)


def test_a_long_axis_is_gathered_and_summed_in_two_rings(monkeypatch):
    monkeypatch.setattr(rings, "ONE_RING", 2)  # so that 8 devices are 4 times 2
    want = evaluate("whole", **CASES["plain"])
    with sharding.use(sharding.make_mesh(ParallelConfig(**LAYOUTS["fsdp"])), Rules()):
        equal(evaluate("blocks", 64), want)


def test_rows_that_the_mesh_does_not_divide_are_added_once():
    """Three rows lie on eight devices: every device computes all of them, and the table's gradient
    counts them once."""
    x, targets = X[:3], TARGETS[:3]

    def of(table, form):
        return heads.cross_entropy(Head(x, table), targets, form, columns=24)[0].sum()

    want = jax.jit(jax.grad(functools.partial(of, form="whole")))(TABLE)
    with sharding.use(sharding.make_mesh(ParallelConfig(data=2, fsdp=4)), Rules()):
        got = jax.jit(jax.grad(functools.partial(of, form="blocks")))(TABLE)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_of_equal_logits_the_first_is_the_likeliest():
    head = Head(jnp.ones((1, 3, 4)), jnp.ones((40, 4)))
    assert not heads.cross_entropy(head, jnp.zeros((1, 3), jnp.int32), "blocks", columns=16)[2].any()


def test_a_target_outside_of_the_vocabulary_stays_finite():
    """Places without weight may hold anything."""
    nats, _, _ = heads.cross_entropy(Head(X, TABLE), jnp.full((B, T), -1), "blocks", columns=64)
    assert np.isfinite(nats).all()


def test_bfloat16_sums_in_float32():
    x, table = X.astype(jnp.bfloat16), TABLE.astype(jnp.bfloat16)
    nats, log_z, _ = heads.cross_entropy(Head(x, table), TARGETS, "blocks", columns=64)
    want = heads.cross_entropy(Head(x.astype(jnp.float32), table.astype(jnp.float32)), TARGETS, "whole")
    assert nats.dtype == log_z.dtype == jnp.float32
    np.testing.assert_allclose(nats, want[0], rtol=1e-5, atol=1e-5)


def test_blocks_are_chosen_where_logits_are_large_and_all_are_covered():
    small, large = (Head(jnp.zeros((1, n, 8)), jax.ShapeDtypeStruct((128_256, 8), jnp.float32)) for n in (64, 4096))
    assert heads.make_plan(large).columns == 8064  # 16 blocks of 126 MiB
    assert not heads.is_large(small, heads.make_plan(small))
    assert heads.is_large(large, heads.make_plan(large))
    for vocab in (50_257, 151_936, 262_208):
        columns = heads.make_plan(
            Head(jnp.zeros((1, 100_000, 8)), jax.ShapeDtypeStruct((vocab, 8), jnp.float32))
        ).columns
        assert columns % 128 == 0
        assert columns >= heads.LEAST_COLUMNS * 0.9


# -------------------------------------------------------------------------------------- the program


def program(layout, columns=8):
    """The compiled gradient of a head whose arrays lie as the rules say, and the sizes of all its
    results."""
    parallel = ParallelConfig(**LAYOUTS[layout])
    mesh = sharding.make_mesh(parallel)
    place = {
        "x": NamedSharding(mesh, sharding.partition_spec(("batch", "seq", None), Rules())),
        "table": NamedSharding(mesh, sharding.partition_spec(("vocab", "embed"), Rules())),
    }
    shapes = {"x": (64, 8, 256), "table": (1024, 256)}
    arrays = {k: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place[k]) for k, shape in shapes.items()}
    targets = jax.ShapeDtypeStruct((64, 8), jnp.int32, sharding=sharding.batch_sharding(mesh, Rules(), ("seq",)))

    def fn(arrays, targets):
        with sharding.use(mesh, parallel.rules):
            return heads.cross_entropy(Head(**arrays), targets, "blocks", columns=columns)[0].sum()

    text = jax.jit(jax.grad(fn), out_shardings=place).lower(arrays, targets).compile().as_text()
    sizes = {math.prod(int(d) for d in dims.split(",") if d) for dims in re.findall(r"= \(?\w+\[([\d,]*)\]", text)}
    return text, sizes


def test_under_fsdp_the_tables_gradient_is_scattered_block_by_block():
    text, sizes = program("fsdp")
    assert re.search(r"f32\[32,8\]\S* reduce-scatter\(", text), "a block's gradient: an eighth of 256 columns, 8 rows"
    assert re.search(r"f32\[8,256\]\S* all-gather\(", text)
    assert "all-reduce(" not in text
    # Neither the table, nor its gradient, nor a device's logits are ever whole: the largest is the
    # table's shard.
    assert max(sizes) == 1024 * 32


def test_over_tensor_only_numbers_per_token_and_the_gradient_of_x_are_summed():
    text, sizes = program("tp")
    assert "all-gather(" not in text
    assert "reduce-scatter(" not in text
    results = [line.partition(" all-reduce(")[0] for line in text.splitlines() if " all-reduce(" in line]
    shapes = {shape for result in results for shape in re.findall(r"\w+\[([\d,]*)\]", result)}
    assert shapes <= {"512", "2,512", "512,256", "64,8"}
    assert max(sizes) <= 512 * 256  # x itself; the logits of a device would be as large, of a block they are 512 x 8
