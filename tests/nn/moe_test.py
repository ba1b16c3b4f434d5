"""Every form of the mixture is the same sum over experts; the losses are the published formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn.experts import moe

B, T, D, E, K, F = 4, 6, 8, 4, 2, 16
# By numpy: JAX would compile, in every process that collects tests.
X = jnp.asarray(np.float32(np.random.default_rng(0).standard_normal((B, T, D))))
MASK = jnp.asarray(np.arange(T) < np.array([[6], [6], [4], [1]]))


def layer(bias=False, seed=1):
    init = normal(0.5)
    tree = {
        "router": moe.router_spec(D, E, init=init, bias_init=init if bias else None),
        "experts": moe.spec(E, D, F, init=init, out_init=init, bias=bias),
    }
    rng = np.random.default_rng(seed)
    return params.map_spec(lambda p: jnp.asarray(np.float32(0.6 * rng.standard_normal(p.shape))), tree)


def run(p, x, normalize=True, **options):
    return moe.experts(p["experts"], x, moe.route(p["router"], x, K, normalize=normalize), MASK, **options)


def one_by_one(p, x, normalize=True, activation=moe.swiglu):
    """Computes the layer token by token and choice by choice, in numpy."""
    w = jax.tree.map(np.asarray, p["experts"])
    routing = jax.tree.map(np.asarray, moe.route(p["router"], x, K, normalize=normalize))
    bias = {n: w.get(f"{n}_bias", np.zeros((E, 1))) for n in ("gate", "up", "down")}
    out = np.zeros(x.shape)
    for b, t, k in np.ndindex(B, T, K):
        e = routing.experts[b, t, k]
        gate, up = (np.asarray(x[b, t]) @ w[n][e] + bias[n][e] for n in ("gate", "up"))
        hidden = np.asarray(activation(jnp.asarray(gate), jnp.asarray(up)))
        out[b, t] += routing.weights[b, t, k] * (hidden @ w["down"][e] + bias["down"][e])
    return out


FORMS = {"dense": {"implementation": "dense"}, "grouped": {"implementation": "grouped"}}
ALL_FORMS = FORMS | {"capacity": {"capacity_factor": 100.0}}


def loss(p, x, **options):
    return jnp.sum(jnp.square(run(p, x, **options) * MASK[..., None]))


def close(a, b, tolerance=2e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_every_form_is_the_weighted_sum_over_the_chosen_experts(form, bias):
    p = layer(bias)
    ours = jax.jit(functools.partial(run, **ALL_FORMS[form]))(p, X)
    close(ours[MASK], one_by_one(p, X)[np.asarray(MASK)])


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["grouped", "capacity"])
def test_every_form_has_the_same_gradients(form, bias):
    p = layer(bias)
    gradients = [jax.jit(jax.grad(functools.partial(loss, **ALL_FORMS[f]), (0, 1)))(p, X) for f in ("dense", form)]
    close(*gradients, 1e-4)
    assert all(np.any(g) for g in jax.tree.leaves(gradients[0]))


@pytest.mark.slow
@pytest.mark.parametrize("form", ALL_FORMS)
def test_another_activation_and_weights_that_do_not_sum_to_one(form):
    def activation(gate, up):
        return jnp.tanh(gate) + 2 * up

    ours = run(layer(), X, normalize=False, activation=activation, **ALL_FORMS[form])
    close(ours[MASK], one_by_one(layer(), X, normalize=False, activation=activation)[np.asarray(MASK)])


LAYOUTS = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "expert": 2},
    {"expert": 4, "tensor": 2, "data": 1},
    {"data": 2, "seq": 2, "fsdp": 2},
]


@pytest.mark.slow
@pytest.mark.few(
    "grouped-{'data': 2, 'fsdp': 2, 'expert': 2}-",
    "capacity-{'data': 2, 'fsdp': 2, 'expert': 2}-batch_not_over_experts",
    "dense-{'data': 2, 'fsdp': 2, 'tensor': 2}-batch_not_over_experts",
)
@pytest.mark.parametrize("rules", [Rules(), Rules(batch=("data", "fsdp"))], ids=["", "batch_not_over_experts"])
@pytest.mark.parametrize("layout", few(LAYOUTS, *LAYOUTS[:2]), ids=str)
@pytest.mark.parametrize("form", ALL_FORMS)
def test_eight_devices_equal_one(form, layout, rules):
    p = layer(bias=True)
    mesh = sharding.make_mesh(ParallelConfig(**layout))
    tree = {
        "router": moe.router_spec(D, E, init=normal(1), bias_init=normal(1)),
        "experts": moe.spec(E, D, F, init=normal(1), out_init=normal(1), bias=True),
    }
    placed = jax.device_put(p, sharding.shardings(tree, mesh, rules))
    step = jax.jit(lambda p, x: jax.value_and_grad(functools.partial(loss, **ALL_FORMS[form]), (0, 1))(p, x))
    one = step(p, X)
    with sharding.use(mesh, rules):
        eight = jax.jit(lambda p, x: step.__wrapped__(p, x))(placed, X)
    close(jax.tree.map(np.asarray, eight), jax.tree.map(np.asarray, one), 1e-4)


@pytest.mark.slow
def test_bfloat16_routes_in_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (layer(bias=True), X))
    routing = moe.route(half[0]["router"], half[1], K)
    assert {routing.logits.dtype, routing.weights.dtype} == {jnp.dtype("float32")}
    for form in ALL_FORMS.values():
        out = run(*half, **form)
        assert out.dtype == jnp.bfloat16
        close(out[MASK].astype(jnp.float32), run(layer(bias=True), X)[MASK], 0.2)


# ----------------------------------------------------------------------------------------- capacity


def to_one_expert(p, e=0):
    """A router that sends every token to expert `e` first."""
    kernel = jnp.zeros((D, E))
    return p | {"router": {"kernel": kernel, "bias": 10.0 * jax.nn.one_hot(e, E)}}


def test_capacity_drops_the_last_tokens_of_a_row():
    p = to_one_expert(layer())
    factor = 1.0  # C = ceil(T K / E) = 3
    out = run(p, X, capacity_factor=factor)
    # The second choice of all is expert 1: it drops the same ones.
    full = run(p, X, implementation="dense")
    close(out[:2, :3], full[:2, :3])
    assert not np.any(out[:2, 3:]), "a dropped token adds nothing to the residual"


def test_padding_takes_no_place():
    p = to_one_expert(layer())
    routing = moe.route(p["router"], X, K)
    late = jnp.arange(T)[None] >= jnp.array([[0], [3], [3], [0]])
    out = moe.experts(p["experts"], X, routing, late, capacity_factor=1.0)
    full = moe.experts(p["experts"], X, routing, late, implementation="dense")
    close(out[1:3, 3:], full[1:3, 3:])
    assert not np.any(out[1:3, :3])


def test_no_token_is_dropped_for_a_later_one():
    """A change of later tokens leaves a token's output as it was, with dropping and without."""
    p = layer()
    out = run(p, X, capacity_factor=0.5)
    changed = X.at[:, 4:].set(-X[:, 4:])
    np.testing.assert_array_equal(run(p, changed, capacity_factor=0.5)[:, :4], out[:, :4])


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 8), (1.25, 10), (0.01, 1), (100.0, 16)])
def test_places(factor, expected):
    assert moe.places(16, 2, 4, factor) == expected


# ------------------------------------------------------------------------------------------- losses


def test_losses_are_the_formulas():
    """There are two layers. transformers puts the tokens of all layers into the means of one
    product."""
    routings = [moe.route(layer(seed=s)["router"], X, K) for s in (1, 2)]
    loads = jax.tree.map(lambda *x: jnp.stack(x), *[moe.load(r, MASK) for r in routings])
    ours = moe.losses(loads, balance=0.5, z=0.25)
    mask = np.asarray(MASK)
    logits = np.concatenate([np.asarray(r.logits)[mask] for r in routings]).astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-probs, axis=-1)[:, :K]
    share = np.bincount(chosen.ravel(), minlength=E) / len(logits)
    assert float(ours["load_balancing_loss"]) == pytest.approx(0.5 * E * np.sum(share * probs.mean(0)), rel=1e-5)
    z = np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    assert float(ours["router_z_loss"]) == pytest.approx(0.25 * z, rel=1e-5)
    assert moe.losses(loads, balance=0.0, z=0.0) == {}


def test_an_even_load_costs_k_and_a_lopsided_one_more():
    def balance(kernel, bias):
        routing = moe.route({"kernel": kernel, "bias": bias}, X, K)
        loads = jax.tree.map(lambda x: x[None], moe.load(routing, MASK))
        return float(moe.losses(loads, balance=1.0, z=0.0)["load_balancing_loss"])

    assert balance(jnp.zeros((D, E)), jnp.zeros(E)) == pytest.approx(K)
    assert balance(jnp.zeros((D, E)), jnp.array([9.0, 9.0, 0.0, 0.0])) == pytest.approx(E, rel=1e-2)


@pytest.mark.slow
def test_padding_has_no_part_in_the_losses():
    def total(x):
        loads = jax.tree.map(lambda a: a[None], moe.load(moe.route(layer()["router"], x, K), MASK))
        return sum(moe.losses(loads, balance=1.0, z=1.0).values())

    other = jnp.where(MASK[..., None], X, 7.0)
    assert float(total(X)) == float(total(other))
    gradient = jax.grad(total)(X)
    assert not np.any(gradient[~MASK])
    assert np.any(gradient[MASK])
