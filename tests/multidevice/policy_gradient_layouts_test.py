"""Each form of the policy gradient on eight devices, whose losses and weights are those of one;
answers are fixed."""

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step

ROWS, LENGTH, STEPS = 16, 16, 3
LAYOUTS = {
    "data": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "fsdp-tensor": ParallelConfig(data=2, fsdp=2, tensor=2),
    "seq": ParallelConfig(data=4, seq=2),
}
KL = {"kl": 0.1, "reference": "adapters_off"}  # the batch has the reference's log-probabilities
FORMS = {
    "grpo": PolicyGradient(form="grpo", **KL),
    "grpo-blocks": PolicyGradient(form="grpo", logits="blocks", **KL),
    "dr_grpo": PolicyGradient(form="dr_grpo", length=8),
    "dapo": PolicyGradient(form="dapo", clip_high=0.28, lag_cap=1.2),
    "bnpo": PolicyGradient(form="bnpo", kl_estimator="weighted_k3", **KL),
    "gspo": PolicyGradient(form="gspo", clip_low=0.02, clip_high=0.03),
}
ROW = ("seq",)  # along which each array but the advantages is laid


def make_batch(step: int) -> dict[str, np.ndarray]:
    """Prompts and answers of unequal length, and log-probabilities around those of a fresh
    model."""
    rng = np.random.default_rng(step)
    tokens, place = rng.integers(2, 64, (ROWS, LENGTH + 1)).astype(np.int32), np.arange(LENGTH)
    prompts = rng.integers(1, 5, (ROWS, 1))
    ends = prompts + rng.integers(1, LENGTH - 5, (ROWS, 1))
    held, asked = place <= ends, (place >= prompts - 1) & (place < ends)
    found = {f"{name}_log_probs": rng.normal(-4.2, 0.2, held.shape) for name in ("old", "rollout", "reference")}
    return {
        "tokens": tokens[:, :-1] * held,
        "targets": tokens[:, 1:] * held,
        "segment_ids": held.astype(np.int32),
        "positions": np.broadcast_to(place, held.shape).astype(np.int32),
        "weights": asked.astype(np.float32),
        "advantages": rng.normal(size=ROWS).astype(np.float32),
        **{name: (x * asked).astype(np.float32) for name, x in found.items()},
    }


def run(form: str, parallel: ParallelConfig):
    """(losses, share of the clip, parameters by path) of a few steps."""
    optim = OptimConfig(lr=1e-2, eps=1e-4, schedule="constant")
    train = TrainConfig(steps=STEPS, batch_size=ROWS)
    config = Config(LlamaConfig.tiny(), FORMS[form], DataConfig(), optim, parallel, train)
    mesh = sharding.make_mesh(parallel, jax.devices()[: int(np.prod(parallel.sizes()))])
    state, fixed, step = init_state(config, mesh), init_constants(config, mesh), make_train_step(config, mesh)
    losses, held = [], []
    for i in range(STEPS):
        batch = make_batch(i)
        axes = {name: () if name == "advantages" else ROW for name in batch}
        where = {name: sharding.batch_sharding(mesh, parallel.rules, axes[name]) for name in batch}
        state, sums = step(state, jax.device_put(batch, where), fixed)
        losses.append(float(sums["loss"].compute()))
        held.append(float(sums["clip_share"].compute()))
    return np.array(losses), np.array(held), params.paths(sharding.to_host(state.params))


@pytest.fixture(scope="module")
def one_device():
    made = {}

    def of(form: str):
        if form not in made:
            made[form] = run(form, ParallelConfig(data=1))
        return made[form]

    return of


def mark(form: str, layout: str):
    return pytest.mark.slow if (form, layout) == ("grpo-blocks", "fsdp-tensor") else pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("form", "layout"), [pytest.param(f, at, marks=mark(f, at), id=f"{f}-{at}") for f in FORMS for at in LAYOUTS]
)
def test_a_layout_is_one_device(form, layout, one_device):
    losses, held, weights = one_device(form)
    got, share, parameters = run(form, LAYOUTS[layout])
    assert 0 < held.mean() < 1
    assert losses[-1] != losses[0]
    np.testing.assert_allclose(got, losses, atol=2e-6)
    np.testing.assert_array_equal(share, held)
    for path, leaf in parameters.items():
        np.testing.assert_allclose(leaf, weights[path], atol=2e-5, err_msg=path)
