"""Sigmoid routing: groups, what the bias does and does not, and the two ways of keeping it even."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.nn.experts import bias_routing

D, E, K = 16, 8, 2


@pytest.fixture
def p():
    return params.init(bias_routing.spec(D, E, init=params.normal(0.5)), jax.random.key(0))


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (4, 32, D))


def test_weights_are_those_of_the_affinities_alone(p, x):
    biased = p | {"choice_bias": jnp.arange(E) * 0.1}
    routing = bias_routing.route(biased, x, K, scale=2.5)
    assert (np.asarray(routing.experts) != np.asarray(bias_routing.route(p, x, K).experts)).any()
    scores = np.take_along_axis(np.asarray(jax.nn.sigmoid(x @ p["kernel"])), np.asarray(routing.experts), -1)
    np.testing.assert_allclose(routing.weights, 2.5 * scores / scores.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(bias_routing.route(biased, x, K, normalize=False).weights, scores, rtol=1e-5)


@pytest.mark.slow
def test_a_token_stays_in_its_groups(p, x):
    """The reference routes one token after the other: it picks groups by the sum of their two best
    experts, then the best experts."""
    routing = bias_routing.route(p, x, 3, num_groups=4, num_chosen_groups=2)
    for scores, chosen in zip(routing.probs.reshape(-1, E), routing.experts.reshape(-1, 3), strict=True):
        groups = np.asarray(scores).reshape(4, 2)
        best = np.argsort(-groups.sum(-1))[:2]
        allowed = [e for g in best for e in (2 * g, 2 * g + 1)]
        assert set(np.asarray(chosen).tolist()) == set(sorted(allowed, key=lambda e: -scores[e])[:3])


@pytest.mark.slow
def test_no_gradient_reaches_the_bias(p, x):
    grads = jax.grad(lambda p: bias_routing.route(p, x, K).weights[..., 0].sum())(p)
    assert not grads["choice_bias"].any()
    assert grads["kernel"].any()


def test_the_bias_makes_an_uneven_router_even(p, x):
    """No loss acts: 300 updates of the bias bring the fullest expert from far above the mean to
    near it."""
    x = x + 0.5  # a common direction, which some experts like
    mask = jnp.ones(x.shape[:2], bool)

    def fullest(bias):
        tokens = bias_routing.num_tokens(bias_routing.route(p | {"choice_bias": bias}, x, K), mask)
        return tokens, tokens.max() / tokens.mean()

    def step(bias, _):
        tokens, worst = fullest(bias)
        return bias_routing.updated_bias(bias, tokens, 0.005), worst

    bias, worst = jax.lax.scan(step, p["choice_bias"], length=300)
    assert worst[0] > 1.7
    assert fullest(bias)[1] < 1.2


def test_padding_counts_for_nothing(p, x):
    mask = jnp.arange(32) < jnp.array([32, 20, 5, 0])[:, None]
    routing = bias_routing.route(p, x, K)
    elsewhere = bias_routing.route(p, jnp.where(mask[..., None], x, 7.0), K)
    assert bias_routing.num_tokens(routing, mask).sum() == K * mask.sum()
    for measure in (bias_routing.num_tokens, bias_routing.sequence_balance):
        jax.tree.map(np.testing.assert_array_equal, measure(routing, mask), measure(elsewhere, mask))


@pytest.mark.slow
def test_sequence_balance_is_the_formula_of_the_paper(p, x):
    """The reference is arXiv:2412.19437, eq. 17-20, on rows of unequal length. The value is 1 where
    all is even."""
    lengths = [32, 20, 5, 1]
    routing = bias_routing.route(p, x, K)
    rows = []
    for scores, n in zip(np.asarray(routing.probs), lengths, strict=True):
        scores = scores[:n]
        likeliest = np.argsort(-scores, axis=-1)[:, :K]
        f = np.array([(likeliest == e).sum() for e in range(E)]) * E / (K * n)
        rows.append((f * (scores / scores.sum(-1, keepdims=True)).mean(0)).sum())
    mask = jnp.arange(32) < jnp.array(lengths)[:, None]
    ours = bias_routing.sequence_balance(routing, mask)
    np.testing.assert_allclose(ours.compute(), np.average(rows, weights=lengths), rtol=1e-5)
    # E tokens, each with another favourite.
    even = routing._replace(probs=0.25 + 0.5 * jnp.eye(E)[None], experts=routing.experts[:1, :E, :1])
    balance = bias_routing.sequence_balance(even, jnp.ones((1, E), bool))
    np.testing.assert_allclose(balance.compute(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((8, 3, 1, 2), "num_groups"),
        ((8, 8, 1, 1), "num_groups"),
        ((8, 0, 1, 1), "num_groups"),
        ((8, 4, 5, 2), "groups_per_token"),
        ((8, 4, 1, 3), "experts_per_token"),
        ((8, 1, 1, 0), "experts_per_token"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, name):
    assert bias_routing.wrong_size(*sizes)[0] == name


def test_sizes_that_fit():
    for sizes in ((256, 8, 4, 8), (64, 1, 1, 6), (8, 1, 1, 8)):
        assert bias_routing.wrong_size(*sizes) is None
