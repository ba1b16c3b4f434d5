"""Losses over a vocabulary by blocks equal those of the logits in memory, on every layout, and
never hold the logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import head_losses
from bigmodel_jax.nn.head import Head
from bigmodel_jax.nn.lora import Adapted, Low

B, T, D, E, V = 8, 6, 16, 24, 200  # E: the teacher's width
# By numpy: JAX would compile, in every process that collects tests.
RNG = np.random.default_rng(0)
SHAPES = ((B, T, D), (V, D), (V,), (B, T, E), (V, E))
X, TABLE, BIAS, X_TEACHER, TABLE_TEACHER = (
    jnp.asarray(np.float32(scale * RNG.standard_normal(s))) for s, scale in zip(SHAPES, (1, 1, 1, 1, 0.5), strict=True)
)
TARGETS = jnp.asarray(np.int32(RNG.integers(0, V, (B, T))))
WEIGHTS = jnp.asarray(np.float32(RNG.uniform(size=(B, T))))
LAYOUTS = {
    "dp": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tp": {"data": 1, "tensor": 8},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
    "seq": {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2},
}
KINDS = {
    "forward_kl": {"kind": "forward_kl"},
    "reverse_kl": {"kind": "reverse_kl", "temperature": 2.0},
    "jsd": {"kind": "jsd", "beta": 0.3, "temperature": 0.7},
    "top_bucket": {"kind": "jsd", "top_k": 5},
    "top_renormalised": {"kind": "reverse_kl", "top_k": 7, "rest": "renormalised"},
}
CASES = {
    "plain": ({}, {}),
    "padded": ({"vocab": 180, "softcap": 3.0}, {"vocab": 180, "softcap": 5.0}),
}


def every(arrays, student, teacher, form, columns):
    """All the losses of one pair of heads, each (B, T); a padded student's table has rows behind
    its vocabulary."""
    mine = Head(arrays["x"], arrays["table"], arrays.get("bias"), **student)
    rows = teacher.get("vocab") or V  # the teacher's table has no padded rows
    theirs = Head(X_TEACHER, TABLE_TEACHER[:rows], **teacher)
    how = {"form": form, "columns": columns}
    found = {name: head_losses.divergence(mine, theirs, **kind, **how) for name, kind in KINDS.items()}
    found["log_probs"] = head_losses.log_probs(mine, TARGETS % rows, temperature=1.5, **how)
    return found | {"entropy": head_losses.entropy(mine, temperature=1.5, **how)}


def evaluate(case, form, columns=0, bias=True):
    """The losses, and the gradients of a sum in which each has weights of its own."""
    student, teacher = CASES[case]
    arrays = {"x": X, "table": TABLE} | ({"bias": BIAS} if bias else {})

    def total(arrays):
        found = every(arrays, student, teacher, form, columns)
        return sum(jnp.sum(y * WEIGHTS**n) for n, y in enumerate(found.values())), found

    (_, found), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    return jax.tree.map(np.asarray, (found, grads))


def equal(got, want):
    for name, values in want[0].items():
        np.testing.assert_allclose(got[0][name], values, rtol=2e-5, atol=2e-6, err_msg=name)
    for name, grad in want[1].items():
        np.testing.assert_allclose(got[1][name], grad, rtol=1e-5, atol=2e-6 * np.abs(grad).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "columns"), few([("padded", 64), ("plain", 7)], ("padded", 64)))
def test_blocks_equal_the_logits_in_memory(case, columns):
    """64 and 7 do not divide the vocabulary: the last block shares columns with the one before."""
    equal(evaluate(case, "blocks", columns), evaluate(case, "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", few(LAYOUTS, "fsdp_tp"))
@pytest.mark.parametrize("form", ["blocks", pytest.param("whole", marks=pytest.mark.exhaustive)])
def test_every_layout_equals_one_device(layout, form):
    want = evaluate("padded", "whole")
    with sharding.use(sharding.make_mesh(ParallelConfig(**LAYOUTS[layout])), Rules()):
        equal(evaluate("padded", form, 24), want)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", few((V, V + 56), V + 56))
def test_a_table_with_adapters_is_that_of_the_merged_weight(rows):
    """`rows` counts the rows of the student's table. If the teacher's table is smaller, the further
    rows are no tokens."""
    w = jnp.pad(TABLE, ((0, rows - V), (0, 0)))
    a, b = (jnp.asarray(0.3 * RNG.standard_normal(shape), jnp.float32) for shape in ((D, 3), (3, rows)))

    def total(arrays, form, merged):
        x, a, b = arrays
        table = Adapted(jax.lax.stop_gradient(w), (Low(a, b, scale=0.5),), 1, turned=True)
        student = Head(x, w + 0.5 * (a @ b).T if merged else table, vocab=V)
        found = [
            head_losses.divergence(student, Head(X_TEACHER, TABLE_TEACHER), **kind, form=form, columns=64)
            for kind in KINDS.values()
        ]
        found.append(head_losses.entropy(student, form, columns=64))
        return sum(jnp.sum(y * WEIGHTS**n) for n, y in enumerate(found))

    run = jax.jit(jax.value_and_grad(total), static_argnums=(1, 2))
    want, want_grads = run((X, a, b), "whole", True)
    for form in ("blocks", "whole"):
        value, grads = run((X, a, b), form, False)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        for got, grad in zip(grads, want_grads, strict=True):
            np.testing.assert_allclose(got, grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max())


# -------------------------------------------------------------------------------------- written out


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def jsd(log_p, log_q, beta):
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log(beta * q + (1 - beta) * p)
    return (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)).sum(-1)


def pair(temperature):
    """Log-probabilities (B, T, V) float64 of student and teacher."""
    student, teacher = np.asarray(X, np.float64) @ np.asarray(TABLE, np.float64).T, X_TEACHER @ TABLE_TEACHER.T
    return log_softmax(student / temperature), log_softmax(teacher / temperature)


@pytest.mark.parametrize("rest", ["bucket", "renormalised"])
def test_top_k_by_numpy(rest):
    log_p, log_q = pair(2.0)
    ids = np.argsort(-log_q, axis=-1)[..., :5]
    few = [np.take_along_axis(y, ids, axis=-1) for y in (log_p, log_q)]
    if rest == "bucket":
        others = [np.ones(y.shape, bool) for y in (log_p, log_q)]
        for mask in others:
            np.put_along_axis(mask, ids, False, axis=-1)
        lost = [
            np.log((np.exp(y) * mask).sum(-1, keepdims=True)) for y, mask in zip((log_p, log_q), others, strict=True)
        ]
        few = [np.concatenate(y, axis=-1) for y in zip(few, lost, strict=True)]
    else:
        few = [log_softmax(y) for y in few]
    got = head_losses.divergence(
        Head(X, TABLE),
        Head(X_TEACHER, TABLE_TEACHER),
        "jsd",
        beta=0.3,
        temperature=2.0,
        top_k=5,
        rest=rest,
        form="whole",
    )
    np.testing.assert_allclose(got, jsd(*few, 0.3), rtol=1e-4, atol=1e-6)


def test_log_probabilities_and_entropy_by_numpy():
    log_p, _ = pair(1.5)
    head = Head(X, TABLE)
    got = head_losses.log_probs(head, TARGETS, temperature=1.5)
    want = np.take_along_axis(log_p, np.asarray(TARGETS)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    got = head_losses.entropy(head, "blocks", temperature=1.5, columns=64)
    np.testing.assert_allclose(got, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_same_distribution_is_no_divergence_however_it_is_measured():
    head = Head(X, TABLE, BIAS)
    for kind in KINDS.values():
        np.testing.assert_allclose(
            head_losses.divergence(head, head, **kind, form="blocks", columns=64), 0.0, atol=2e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["blocks", "whole"])
def test_unlikely_tokens_stay_finite(form):
    """The logits lie so far apart that most tokens' probabilities are zero in float32."""

    def total(x):
        pair = Head(x, TABLE * 1e3), Head(X_TEACHER, TABLE_TEACHER * 1e3)
        found = [head_losses.divergence(*pair, **kind, form=form, columns=64) for kind in KINDS.values()]
        return sum(y.sum() for y in found) + head_losses.entropy(pair[0], form, columns=64).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(X)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_a_teacher_with_another_vocabulary():
    with pytest.raises(ValueError, match="the teacher has another vocabulary, of 180 tokens; the student's has 200"):
        head_losses.divergence(Head(X, TABLE), Head(X_TEACHER, TABLE_TEACHER, vocab=180))


# -------------------------------------------------------------------------------------- the program


def compiled(kind, tokens, vocab, argnums=(0, 1), dim=8):
    """The gradient by x and the table, compiled for these sizes, in blocks of 1024 columns."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, tokens, dim), (vocab, dim)) * 2]

    def loss(x, table, x_teacher, table_teacher):
        student, teacher, how = Head(x, table), Head(x_teacher, table_teacher), {"form": "blocks", "columns": 1024}
        if kind == "entropy":
            return head_losses.entropy(student, **how).sum()
        return head_losses.divergence(student, teacher, **KINDS[kind], **how).sum()

    return jax.jit(jax.value_and_grad(loss, argnums)).lower(*shapes).compile()


@pytest.mark.parametrize("kind", ["jsd", "top_bucket", "entropy"])
def test_memory_is_that_of_blocks(kind):
    """The vocabulary has 128k tokens: the logits of 512 tokens would be 256 MiB for each model, and
    a block is 2 MiB."""
    memory = compiled(kind, 512, 131_072).memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 2**20


def test_a_frozen_table_has_no_gradient_in_the_program():
    """The gradient of x alone is a program without the product that makes the table's gradient."""

    def products(argnums):
        text = compiled("jsd", 96, 4096, argnums, dim=40).as_text()
        return len(re.findall(r"f32\[1024,40\]\S* dot\(", text))

    assert products((0, 1)) == 1
    assert products((0,)) == 0
