"""The network over a board against convolutions written out in numpy."""

import jax
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.models.board import BoardConfig


def convolved(p, x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    out = np.zeros((*x.shape[:3], p["kernel"].shape[-1]))
    for row in range(3):
        for column in range(3):
            out += padded[:, row : row + height, column : column + width] @ p["kernel"][row, column]
    return out + p["bias"]


def test_policy_and_value_are_those_of_numpy():
    model = BoardConfig.tiny().make()
    tree = params.init(model.spec, jax.random.key(0))
    board = np.random.default_rng(0).integers(0, 2, (3, 6, 7, 2)).astype(np.float32)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64) + 0.01, tree)  # no bias is zero
    out = model.apply(jax.tree.map(lambda x: x.astype(np.float32), p), {"board": board}).value
    x = np.maximum(convolved(p["stem"], board), 0)
    inner = np.maximum(convolved(p["block0"]["first"], x), 0)
    x = np.maximum(x + convolved(p["block0"]["second"], inner), 0).reshape(3, -1)
    x = np.maximum(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    np.testing.assert_allclose(out[:, :7], x @ p["policy"]["kernel"] + p["policy"]["bias"], rtol=1e-4, atol=1e-5)
    value = np.tanh(x @ p["value"]["kernel"] + p["value"]["bias"])
    np.testing.assert_allclose(out[:, 7:], value, rtol=1e-4, atol=1e-5)
