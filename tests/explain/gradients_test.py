"""Saliency, SmoothGrad, integrated gradients and Grad-CAM against closed forms; attributions add
up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from bigmodel_jax.core import params
from bigmodel_jax.explain import saliency, smooth_grad
from bigmodel_jax.explain.grad_cam import grad_cam
from bigmodel_jax.explain.integrated_gradients import complete
from bigmodel_jax.models import MODELS

DRAW = np.random.default_rng(0)
W, X, BASE = (jnp.asarray(np.float32(DRAW.normal(size=(3, 4)))) for _ in range(3))


def linear(x):
    return jnp.sum(W * x) + 1


def cubic(x):
    return jnp.sum(W * x**3)


def test_a_linear_model_has_its_weights_as_gradient_and_its_terms_as_attributions():
    np.testing.assert_allclose(saliency.gradient(linear, X), W)
    np.testing.assert_allclose(saliency.by_place(W), np.abs(W).max(-1))
    np.testing.assert_allclose(smooth_grad.smooth_grad(linear, X, jax.random.key(0), copies=8), W, rtol=1e-6)
    np.testing.assert_allclose(complete(linear, X, BASE).values, W * (X - BASE), rtol=1e-5)


def test_integrated_gradients_of_a_sum_are_the_differences_of_its_terms():
    found = complete(cubic, X, BASE)
    np.testing.assert_allclose(found.values, W * (X**3 - BASE**3), rtol=1e-4, atol=1e-5)
    assert found.error < 1e-5


def test_smooth_grad_is_the_gradient_of_the_smoothed_function():
    """The expected value is E[3 (x + s)²] = 3 x² + 3 σ²."""
    sigma = 0.15 * float(X.max() - X.min())
    found = smooth_grad.smooth_grad(lambda x: jnp.sum(x**3), X, jax.random.key(0), copies=4000)
    np.testing.assert_allclose(found, 3 * X**2 + 3 * sigma**2, atol=0.25)


def test_points_gather_where_the_gradient_jumps_and_the_figure_is_honest():
    """32 points miss the step of this gradient. A Gauss-Legendre sum over the whole path needs 256
    points to find it."""

    def kink(x):
        return jnp.sum(jax.nn.relu(x - 0.98))

    one, zero = jnp.ones(1), jnp.zeros(1)
    coarse, fine = complete(kink, one, zero, most_steps=32), complete(kink, one, zero)
    assert coarse.error > 0.01
    assert coarse.steps == 32
    assert fine.error <= 0.01
    assert 32 < fine.steps < 128
    assert fine.difference == pytest.approx(0.02, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "mlp", "vit"])
def test_attributions_of_a_model_sum_to_the_output_difference_within_one_percent(name):
    cfg = MODELS[name].tiny()
    model = cfg.make()
    tree = model.init(jax.random.key(0)) if model.init else params.init(model.spec, jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (1, *cfg.image_shape))
    f = Partial(lambda tree, x: model.apply(tree, {"image": x}).value[0, 3], tree)
    found = complete(f, x, jnp.zeros_like(x))
    assert found.difference == pytest.approx(float(f(x) - f(jnp.zeros_like(x))))
    assert abs(float(found.values.sum()) - found.difference) <= 0.01 * abs(found.difference)


def rectified(x, kernel):
    return jax.nn.relu(
        jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )


@pytest.mark.parametrize("inside", [lambda f: f, jax.jit])
@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit])
def test_grad_cam_is_the_closed_form(inside, compiled):
    """The mean gradient of a map is its weight divided by the number of its places. The convolution
    may stand in a function."""
    x, kernel, w = (jnp.asarray(DRAW.normal(size=s), jnp.float32) for s in ((1, 5, 6, 2), (3, 3, 2, 4), (4,)))
    maps = inside(functools.partial(rectified, kernel=kernel))
    found = compiled(grad_cam)(Partial(lambda w, x: jnp.mean(maps(x), axis=(1, 2))[0] @ w, w), x)
    assert found.any()
    np.testing.assert_allclose(found, jax.nn.relu(maps(x)[0] @ (w / 30)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"), [("cnn", (2, 2)), pytest.param("resnet", (2, 2), marks=pytest.mark.exhaustive), ("mlp", None)]
)
def test_the_last_maps_are_found_in_the_program(name, shape):
    cfg = MODELS[name].tiny()
    model = cfg.make()
    tree = model.init(jax.random.key(0)) if model.init else params.init(model.spec, jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (1, *cfg.image_shape))
    found = grad_cam(lambda x: model.apply(tree, {"image": x}).value[0, 3], x)
    assert (found if found is None else found.shape) == shape
