"""Linear regression against the closed form, logistic regression against scikit-learn, both trained
by the real step."""

import csv
import dataclasses
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.loader import make_iterator
from bigmodel_jax.data.tabular import Tables, TabularData, read_split
from bigmodel_jax.models import LinearConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step
from runs import launch

ROOT = Path(__file__).parents[2]
CONFIG = config_file.load(ROOT / "configs" / "linear_regression.py")
TOLERANCE = 1e-4


def trained(config):
    """The parameters after the run's steps, without the rest of a run."""
    mesh = sharding.make_mesh(ParallelConfig(), jax.devices()[:1])
    batches = make_iterator(config.data, batch_size=config.train.batch_size, seed=0, mesh=mesh)
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    for _ in range(config.train.steps):
        state, _ = step(state, next(batches))
    return jax.tree.map(np.asarray, state.params)


def least_squares(features, target):
    """(kernel, bias) in float64."""
    solution = np.linalg.lstsq(np.c_[features, np.ones(len(features))], target, rcond=None)[0]
    return {"kernel": solution[:-1], "bias": solution[-1]}


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


def close(ours, theirs):
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=TOLERANCE, rtol=0)


def test_diabetes_is_the_least_squares_solution():
    table = read_split(CONFIG.data, "train")
    close(trained(CONFIG), least_squares(standardised(table.features), standardised(table.targets)))


def test_the_page_about_regression_on_its_ten_points(tmp_path, monkeypatch):
    """The test runs the table and the command of docs/regression.md as they stand; the model finds
    the line through the points."""
    text = (ROOT / "docs" / "regression.md").read_text()
    table = re.search(r"```csv\n(.*?)```", text, re.DOTALL)[1]
    command = re.search(r"uv run launch.py (train .*?)```", text, re.DOTALL)[1].replace("\\\n", "")
    monkeypatch.chdir(tmp_path)
    Path("points.csv").write_text(table)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = launch(*command.split())
    assert done.returncode == 0, done.stderr
    rows = [[float(x) for x in row.values()] for row in csv.DictReader(io.StringIO(table))]
    assert len(rows) == 10
    points = np.array(rows)
    run = Path("runs/linear_regression")
    mesh = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    weights, _ = load_weights(config_file.load(run), run, mesh)
    close(weights, least_squares(standardised(points[:, :2]), standardised(points[:, 2:])))
    # In the units of the table, as the page says.
    mean, scale = points.mean(0), points.std(0)
    kernel = np.asarray(weights["kernel"])[:, 0] * scale[2] / scale[:2]
    theirs = least_squares(points[:, :2], points[:, 2:])
    np.testing.assert_allclose(kernel, theirs["kernel"][:, 0], rtol=TOLERANCE)
    bias = float(weights["bias"][0]) * scale[2] + mean[2] - kernel @ mean[:2]
    assert bias == pytest.approx(theirs["bias"][0], rel=TOLERANCE)
    shown = re.search(r"price = ([\d.]+) \* size \+ ([\d.]+) \* rooms - ([\d.]+)", text).groups()
    np.testing.assert_allclose([*map(float, shown)], [*kernel, -bias], rtol=1e-3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_logistic_regression_is_scikit_learns(num_classes, tmp_path):
    """Both fit an unregularised softmax regression to the diabetes' progression cut into classes.
    The tolerance is 1e-4 for weights near 1."""
    from sklearn.linear_model import LogisticRegression

    table = read_split(TabularData(), "train")
    label = np.digitize(table.targets[:, 0], np.quantile(table.targets, np.linspace(0, 1, num_classes + 1)[1:-1]))
    # The blood measurements s1 to s6 nearly follow from one another; without two of them the
    # solution is well determined.
    features = table.features[:, [0, 1, 2, 3, 6, 8, 9]]
    data = write_table(tmp_path / "classes.csv", features, label, num_classes)
    config = dataclasses.replace(
        CONFIG,
        model=LinearConfig(feature_shape=(7,), num_outputs=num_classes),
        objective=Classification(),
        data=data,
        optim=dataclasses.replace(CONFIG.optim, lr=2.0),
        train=TrainConfig(steps=600, batch_size=len(label)),
    )
    ours = trained(config)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(standardised(features), label)
    kernel, bias = ours["kernel"].T, ours["bias"]
    if num_classes == 2:  # scikit-learn keeps the difference of the two classes' logits
        kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
    np.testing.assert_allclose(kernel, theirs.coef_, atol=TOLERANCE)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=TOLERANCE)


def write_table(path, features, label, num_classes):
    names = [f"x{i}" for i in range(features.shape[1])]
    rows = [
        ",".join([*names, "label"]),
        *(",".join(map(repr, [*x, y])) for x, y in zip(features.tolist(), label.tolist(), strict=True)),
    ]
    path.write_text("\n".join(rows))
    return TabularData(source=Tables(str(path), str(path)), target=("label",), num_classes=num_classes)


def test_it_is_the_formula_and_starts_at_zero():
    model = LinearConfig(feature_shape=(3,), num_outputs=2).make()
    p = params.init(model.spec, jax.random.key(0))
    assert params.count(model.spec) == 8
    assert not any(x.any() for x in jax.tree.leaves(p))
    p = jax.tree.map(lambda x: np.random.default_rng(0).standard_normal(x.shape, np.float32), p)
    x = np.random.default_rng(1).standard_normal((5, 3), np.float32)
    np.testing.assert_allclose(model.apply(p, {"features": x}).value, x @ p["kernel"] + p["bias"], atol=1e-6)


def test_no_outputs_is_one_line():
    with pytest.raises(ValueError, match=r"model\.num_outputs = 0; it must be 1 or more"):
        LinearConfig(num_outputs=0).validate(ParallelConfig())
