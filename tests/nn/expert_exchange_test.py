"""Rows that travel: none is lost however unbalanced, and a TPU's program exchanges them ragged."""

import collections
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn.experts import moe

TPU_EXPERTS = Path(__file__).parent / "tpu_experts.py"


@pytest.mark.slow
def test_nothing_is_dropped_where_all_tokens_choose_one_device():
    B, T, D, E, K = 4, 6, 8, 8, 2
    spec = moe.spec(E, D, 16, init=normal(0.5), out_init=normal(0.5))
    p = params.init(spec, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    # Experts 6 and 7, both of the last of four devices.
    bias = jnp.where(jnp.arange(E) >= 6, 9.0, 0.0)
    routing = moe.route({"kernel": jnp.zeros((D, E)), "bias": bias}, x, K)
    mesh = sharding.make_mesh(ParallelConfig(data=1, expert=4), jax.devices()[:4])
    with sharding.use(mesh, Rules()):
        placed = jax.device_put(p, sharding.shardings(spec, mesh, Rules()))
        many = jax.jit(moe.grouped)(placed, x, routing)
    np.testing.assert_allclose(many, moe.dense(p, x, routing), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: install the extra plan")
def test_a_tpu_exchanges_ragged_rows_there_and_back(compiled_for_tpus):
    found = [(kind, shape) for shape, kind in compiled_for_tpus(TPU_EXPERTS)]
    # Each of the 4 devices has 2 x 128 tokens and sends each token to 2 experts, so it sends 512
    # rows. It receives at most 2 rows for each of all 4 x 256 tokens, so 2048 rows. The exchange
    # runs forward and back.
    rows = collections.Counter(shape for kind, shape in found if kind == "ragged-all-to-all")
    assert rows == {"bf16[2048,2,128]": 2, "bf16[512,2,128]": 2}
    # Besides, only numbers of rows.
    assert all(shape.startswith("s32") for kind, shape in found if kind != "ragged-all-to-all")
