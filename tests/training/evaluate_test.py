"""An evaluation is one sum over the whole split, however it is cut into batches."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.data.images.image_rows import ImageRows
from bigmodel_jax.data.loader import EvalBatches
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.state import init_state, weights

CONFIG = Config(MLPConfig.tiny(), Classification(), ImageData(), parallel=ParallelConfig(data=1))
ROWS = 21
TABLES = {"eval/confusion", "eval/roc", "eval/precision_recall", "eval/calibration"}


@pytest.fixture(scope="module")
def scalars():
    """{batch size: scalars} of the same 21 examples."""
    mesh = sharding.make_mesh(CONFIG.parallel, jax.devices()[:1])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(ROWS, 8, 8, 1)).astype(np.float32)
    rows = ImageRows(images, rng.integers(0, 10, ROWS).astype(np.int32), 0, {})
    step, tree = make_eval_step(CONFIG, mesh), weights(init_state(CONFIG, mesh))
    batches = {n: EvalBatches(rows, n, mesh, CONFIG.parallel.rules) for n in (ROWS, 8, 4)}
    return {n: evaluate(CONFIG, step, tree, b) for n, b in batches.items()} | {"rows": rows, "tree": tree}


@pytest.mark.parametrize("size", [8, 4])
def test_batches_of_any_size_give_the_metrics_of_the_whole(scalars, size):
    """21 rows are 2 x 8 + 5: the rows that fill up the last batch do not count, and each batch
    weighs as much as its rows."""
    whole, cut = scalars[ROWS], scalars[size]
    assert cut.keys() == whole.keys()
    assert cut["eval/confusion"] == whole["eval/confusion"]
    for name in whole.keys() - TABLES:
        assert cut[name] == pytest.approx(whole[name], rel=1e-6)
    np.testing.assert_allclose(cut["eval/calibration"], whole["eval/calibration"], atol=1e-4)


def test_metrics_are_what_numpy_says(scalars):
    rows = scalars["rows"]
    logits = np.asarray(CONFIG.model.make().apply(scalars["tree"], rows.batch(np.arange(ROWS), None)).value, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = scalars[ROWS]
    assert found["eval/loss"] == pytest.approx(-log_p[np.arange(ROWS), rows.labels].mean(), rel=1e-5)
    assert found["eval/accuracy"] == pytest.approx((logits.argmax(-1) == rows.labels).mean())
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (rows.labels, logits.argmax(-1)), 1)
    assert found["eval/confusion"] == matrix.tolist(), "[label][prediction]"


def test_names_are_those_that_the_objective_declares(scalars):
    declared = {f"eval/{m.name}" for m in CONFIG.objective.metrics}
    assert scalars[ROWS].keys() == declared | TABLES


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="validation split is empty"):
        evaluate(dataclasses.replace(CONFIG), lambda *_: {}, {}, [])
