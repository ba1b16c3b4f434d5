"""Next-token loss on a model whose logits are its parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import NextToken

B, T, V = 4, 6, 8
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(B, T, V)), jnp.float32)
BATCH = {
    "targets": RNG.integers(0, V, (B, T)).astype(np.int32),
    "weights": RNG.integers(0, 2, (B, T)).astype(np.float32),
    "target_bytes": RNG.integers(1, 5, (B, T)).astype(np.int32),
}


def model(losses=None):
    return Model(spec={}, apply=lambda p, batch, **_: Out(p, losses=losses or {}))


def loss(logits=LOGITS, batch=BATCH, objective=None, train=False, losses=None):
    return (objective or NextToken()).loss(model(losses), logits, batch, rng=None, train=train)


@pytest.mark.slow
def test_only_weighted_targets_count():
    other = dict(BATCH, targets=np.where(BATCH["weights"] > 0, BATCH["targets"], (BATCH["targets"] + 1) % V))
    jax.tree.map(np.testing.assert_array_equal, loss().metrics, loss(batch=other).metrics)
    grad = jax.grad(lambda x: loss(x).mean.total)(LOGITS)
    assert (np.abs(grad).sum(-1) > 0).astype(int).tolist() == BATCH["weights"].astype(int).tolist()


@pytest.mark.slow
def test_microbatches_of_unequal_weight_sum_to_the_batch():
    whole = loss().metrics
    halves = [loss(LOGITS[s], {k: v[s] for k, v in BATCH.items()}).metrics for s in (slice(0, 1), slice(1, 4))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics.add(*halves), whole)


def test_uniform_logits_cost_log2_of_the_vocabulary_per_token():
    scalars = NextToken().summarize(loss(jnp.zeros((B, T, V))).metrics)
    num_bytes = (BATCH["target_bytes"] * BATCH["weights"]).sum()
    assert scalars["loss"] == pytest.approx(math.log(V))
    assert scalars["perplexity"] == pytest.approx(V, rel=1e-5)
    assert scalars["bits_per_byte"] == pytest.approx(math.log2(V) * BATCH["weights"].sum() / num_bytes)


@pytest.mark.parametrize(("ignored", "perplexity"), [(None, 3.5257), (1, 3.6347)])
def test_perplexity_is_that_of_torchevals_documentation(ignored, perplexity):
    logits = jnp.array(
        [[0.3659, 0.7025, 0.3104], [0.0097, 0.6577, 0.1947], [0.5659, 0.0025, 0.0104], [0.9097, 0.0577, 0.7947]]
    )
    targets = np.array([[2], [1], [2], [1]], np.int32)
    batch = {"targets": targets, "weights": (targets != ignored).astype(np.float32)}
    scalars = NextToken().summarize(loss(logits[:, None], batch).metrics)
    assert scalars["perplexity"] == pytest.approx(perplexity, abs=5e-5)


def test_evaluation_reports_its_names_and_training_does_not_pay_for_them():
    assert set(NextToken().summarize(loss().metrics)) == {m.name for m in NextToken().metrics}
    assert set(loss(train=True).metrics) == {"loss"}
    without = {k: v for k, v in BATCH.items() if k != "target_bytes"}
    assert "bits_per_byte" not in loss(batch=without).metrics


def test_perplexity_of_a_diverged_run_does_not_overflow():
    assert math.isfinite(NextToken().summarize(loss(LOGITS * 1e6).metrics)["perplexity"])


def test_z_loss_pulls_log_z_towards_zero_and_is_not_in_the_reported_loss():
    with_z = NextToken(z_loss=0.1)
    assert loss(objective=with_z).metrics["loss"].total == loss().metrics["loss"].total
    log_z = jax.nn.logsumexp(LOGITS, -1)
    want = loss().mean.total + 0.1 * (log_z**2 * BATCH["weights"]).sum()
    np.testing.assert_allclose(loss(objective=with_z).mean.total, want, rtol=1e-6)

    def shift(c):
        return loss(LOGITS + c, objective=with_z).mean.total

    assert jax.grad(shift)(10.0) > 0 > jax.grad(shift)(-10.0)


def test_auxiliary_losses_are_added_per_token_and_reported():
    with_aux = loss(losses={"balance": jnp.float32(0.5)})
    np.testing.assert_allclose(with_aux.mean.compute(), loss().mean.compute() + 0.5, rtol=1e-6)
    assert with_aux.metrics["balance"].compute() == 0.5
    assert with_aux.metrics["loss"].total == loss().metrics["loss"].total
