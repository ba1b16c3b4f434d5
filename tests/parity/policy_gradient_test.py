"""Policy gradients against TRL's: the same weights and batch give the same loss, gradients and 20
steps, form by form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import DataConfig
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.pretrained.names import Tensor
from bigmodel_jax.training.step import accumulate

PROMPT, RESPONSE = 5, 6
CASES = {
    "grpo": PolicyGradient(form="grpo", kl=0.04, reference="adapters_off"),
    "bnpo": PolicyGradient(form="bnpo", kl=0.04, reference="adapters_off"),
    "dr_grpo": PolicyGradient(form="dr_grpo", length=RESPONSE),
    "dapo": PolicyGradient(form="dapo", clip_high=0.28),
    "gspo": PolicyGradient(form="gspo", clip_low=0.02, clip_high=0.03),
    "lag": PolicyGradient(form="dapo", kl=0.04, kl_estimator="weighted_k3", reference="adapters_off", lag_cap=1.2),
    "pieces": PolicyGradient(form="bnpo", kl=0.04, reference="adapters_off"),
}


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    return reference.fixture_folder("policy_gradient", python, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def theirs(found):
    family, cfg = reference.folder.read_config(found)
    with np.load(found / "reference.npz") as arrays:
        arrays = dict(arrays)
    return family, cfg, reference.read(family, cfg, reference.folder.open_weights(found)), arrays


def batch_of(arrays) -> dict[str, jax.Array]:
    """Rows of prompt and response, each token beside the one that follows it."""
    whole = np.concatenate([arrays["prompt_ids"], arrays["completion_ids"]], axis=1).astype(np.int32)
    segments = np.concatenate([arrays["prompt_mask"], arrays["completion_mask"]], axis=1)[:, :-1]
    front = ((0, 0), (PROMPT - 1, 0))
    names = {"old_log_probs": "old", "reference_log_probs": "ref", "rollout_log_probs": "sampling"}
    more = {name: np.pad(arrays[f"{theirs}_per_token_logps"], front) for name, theirs in names.items()}
    weights = np.pad(arrays["completion_mask"].astype(np.float32), front)
    batch = {"tokens": whole[:, :-1], "targets": whole[:, 1:], "weights": weights, "advantages": arrays["advantages"]}
    return jax.tree.map(jnp.asarray, batch | more | {"segment_ids": segments.astype(np.int32)})


def tensor(x: np.ndarray) -> Tensor:
    return Tensor(x.shape, x.dtype.name, lambda: x)


@functools.cache
def compiled(cfg, objective, microbatches):
    config = Config(cfg, objective, DataConfig(), train=TrainConfig(batch_size=4, microbatches=microbatches))
    model = config.make_model()
    return jax.jit(lambda tree, batch: accumulate(config, model, tree, {}, batch, jax.random.key(0)))


def measured(cfg, objective, tree, batch, microbatches=1):
    """(loss, gradients by path) of a step, as it computes them."""
    grads, mean, sums, _ = compiled(cfg, objective, microbatches)(tree, batch)
    assert float(sums["loss"].compute()) == pytest.approx(float(mean.compute()))
    return float(mean.compute()), jax.tree.map(lambda g: g / mean.count, grads), sums


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in ("grpo", "gspo") else pytest.mark.slow) for case in CASES],
)
def test_loss_and_gradients_are_those_of_trl(theirs, case):
    family, cfg, tree, arrays = theirs
    batch = batch_of(arrays)
    loss, grads, _ = measured(cfg, CASES[case], tree, batch, microbatches=2 if case == "pieces" else 1)
    # What stands against the error are the terms of the sum, and not what is left of them.
    terms = float(jnp.abs(batch["advantages"]).mean())
    assert abs(loss - arrays[f"loss/{case}"]) <= 1e-5 * terms
    prefix = f"grad/{case}/"
    expected = {name.removeprefix(prefix): tensor(x) for name, x in arrays.items() if name.startswith(prefix)}
    expected = params.paths(reference.read(family, cfg, expected))
    largest = max(float(jnp.abs(x).max()) for x in expected.values())
    assert largest > 1e-3
    for path, gradient in params.paths(grads).items():
        assert reference.distance(gradient, expected[path]) <= 1e-4 * max(1.0, largest), path


@pytest.mark.exhaustive  # the gradients are compared above, and AdamW by the decoders' curves
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_trl(theirs, case):
    """Both sides take AdamW's steps on the fixed rollouts, from the same weights. Some ratios leave
    the clip on the way."""
    _, cfg, tree, arrays = theirs
    optim = OptimConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, schedule="constant", warmup_steps=0, clip=1.0)
    train = TrainConfig(steps=20, batch_size=4, microbatches=2 if case == "pieces" else 1)
    losses = reference.losses_of_steps(
        Config(cfg, CASES[case], DataConfig(), optim=optim, train=train), tree, batch_of(arrays)
    )
    assert reference.distance(losses, arrays[f"losses/{case}"]) <= 1e-3
    assert losses[-1] < losses[0] - 0.05


def test_the_batch_tells_the_forms_apart(theirs):
    """Some ratios are clipped on either side, and some are not, so each form has another loss."""
    _, cfg, tree, arrays = theirs
    losses = {case: arrays[f"loss/{case}"] for case in CASES}
    assert len({round(float(x), 6) for x in losses.values()}) == len(losses)
    for case in ("grpo", "gspo"):
        _, _, sums = measured(cfg, CASES[case], tree, batch_of(arrays))
        assert 0 < float(sums["clip_share"].compute()) < 1
        assert 0.2 < float(sums["log_prob_gap"].compute()) < 0.8


@pytest.mark.exhaustive
@pytest.mark.few("dapo", "gspo")
@pytest.mark.parametrize("case", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_microbatches_add_up_to_the_batch(theirs, case):
    """No form but bnpo knows how the batch is cut. A group's rows may lie in several pieces."""
    _, cfg, tree, arrays = theirs
    whole = measured(cfg, CASES[case], tree, batch_of(arrays))
    pieces = measured(cfg, CASES[case], tree, batch_of(arrays), microbatches=4)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
    for path, gradient in params.paths(pieces[1]).items():
        assert reference.distance(gradient, params.paths(whole[1])[path]) < 1e-5, path


@pytest.mark.slow
def test_dr_grpo_and_gspo_as_their_papers_write_them(theirs):
    """The references are arXiv:2503.20783, equation 3 with its listing's constant, and
    arXiv:2507.18071, equations 5 to 7, in numpy."""
    _, cfg, tree, arrays = theirs
    batch = batch_of(arrays)
    logits = np.asarray(cfg.make().apply(tree, batch).value, np.float64)
    own = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(own, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    mask, advantages = np.asarray(batch["weights"], np.float64), np.asarray(batch["advantages"], np.float64)
    log_ratio = own - np.asarray(batch["old_log_probs"], np.float64)

    total = 0.0
    for i, advantage in enumerate(advantages):
        for t in np.flatnonzero(mask[i]):
            ratio = np.exp(log_ratio[i, t])
            total += min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    loss, _, _ = measured(cfg, CASES["dr_grpo"], tree, batch)
    assert loss == pytest.approx(-total / (len(advantages) * RESPONSE), abs=1e-6)

    total = 0.0
    for i, advantage in enumerate(advantages):
        ratio = np.exp(log_ratio[i][mask[i] > 0].mean())
        total += min(ratio * advantage, min(max(ratio, 0.98), 1.03) * advantage)
    loss, _, _ = measured(cfg, CASES["gspo"], tree, batch)
    assert loss == pytest.approx(-total / len(advantages), abs=1e-6)


@pytest.mark.slow
def test_weights_that_sampled_are_the_steps_own_without_old_log_probabilities(theirs):
    """Every ratio is then 1, the loss of a token is minus its advantage, and its gradient is the
    policy gradient."""
    _, cfg, tree, arrays = theirs
    batch = {k: v for k, v in batch_of(arrays).items() if k != "old_log_probs"}
    loss, grads, sums = measured(cfg, CASES["dapo"], tree, batch)
    weights = batch["weights"]
    assert loss == pytest.approx(float(-(batch["advantages"][:, None] * weights).sum() / weights.sum()), abs=1e-6)
    assert float(sums["clip_share"].compute()) == 0

    def plain(tree):
        logits = cfg.make().apply(tree, batch).value
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
        return -jnp.sum(batch["advantages"][:, None] * weights * own) / weights.sum()

    for path, gradient in params.paths(jax.grad(plain)(tree)).items():
        assert reference.distance(gradient, params.paths(grads)[path]) < 1e-5, path
