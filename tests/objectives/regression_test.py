"""Mean squared error and its two metrics against scikit-learn's."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.models import LinearConfig
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Regression

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((30, 4), np.float32)
TARGET = RNG.standard_normal((30, 2), np.float32)
WEIGHTS = np.r_[np.ones(25), np.zeros(5)].astype(np.float32)
PARAMS = {"kernel": RNG.standard_normal((4, 2), np.float32), "bias": np.array([0.1, -0.2], np.float32)}
MODEL = LinearConfig(feature_shape=(4,), num_outputs=2).make()
SCALE = np.tile(np.array([77.0, 0.5], np.float32), (30, 1))


def loss(part, train=False, **more):
    batch = {"features": FEATURES[part], "target": TARGET[part], "weights": WEIGHTS[part]} | more
    return Regression().loss(MODEL, PARAMS, batch, rng=None, train=train)


@pytest.mark.slow
def test_metrics_are_scikit_learns_and_batches_add_up():
    from sklearn import metrics as sklearn_metrics

    whole = slice(None)
    sums = metrics.add(
        loss(slice(0, 11), target_scale=SCALE[:11]).metrics, loss(slice(11, 30), target_scale=SCALE[11:]).metrics
    )
    scalars = Regression().summarize({k: type(m)(np.asarray(m.total), np.asarray(m.count)) for k, m in sums.items()})
    predicted = FEATURES[:25] @ PARAMS["kernel"] + PARAMS["bias"]
    assert set(scalars) == {m.name for m in Regression().metrics}
    assert scalars["loss"] == pytest.approx(sklearn_metrics.mean_squared_error(TARGET[:25], predicted), rel=1e-5)
    assert scalars["r2"] == pytest.approx(sklearn_metrics.r2_score(TARGET[:25], predicted), rel=1e-4)
    squares = sklearn_metrics.mean_squared_error(TARGET[:25] * SCALE[:25], predicted * SCALE[:25])
    assert scalars["rmse"] == pytest.approx(squares**0.5, rel=1e-5)
    assert scalars["mse"] == pytest.approx(squares, rel=1e-5)
    absolute = sklearn_metrics.mean_absolute_error(TARGET[:25] * SCALE[:25], predicted * SCALE[:25])
    assert scalars["mae"] == pytest.approx(absolute, rel=1e-5)
    trained = loss(whole, train=True)
    assert set(trained.metrics) == {"loss"}
    assert float(trained.mean.compute()) == pytest.approx(scalars["loss"], rel=1e-5)


def test_an_example_of_scikit_learns_documentation():
    """The documentation of mean_squared_error, mean_absolute_error and r2_score shows 0.375, 0.5
    and 0.948."""
    model = Model({}, lambda params, batch, **_: Out(batch["predicted"]))
    batch = {"predicted": jnp.array([[2.5], [0.0], [2], [8]]), "target": jnp.array([[3.0], [-0.5], [2], [7]])}
    out = Regression().loss(model, {}, batch | {"weights": jnp.ones(4)}, rng=None, train=False)
    scalars = Regression().summarize(out.metrics)
    assert scalars["mse"] == pytest.approx(0.375)
    assert scalars["mae"] == pytest.approx(0.5)
    assert scalars["r2"] == pytest.approx(0.948, abs=1e-3)


def test_a_target_that_never_varies_has_no_r2():
    out = loss(slice(0, 4), target=jnp.ones((4, 2)))
    assert Regression().summarize(out.metrics)["r2"] == 0.0


def test_another_number_of_outputs_is_one_line():
    with pytest.raises(ValueError, match=r"model\.num_outputs: the model predicts \(2,\), but a target has \(1,\)"):
        loss(slice(None), target=TARGET[:, :1])
