"""Objectives over pairs of answers: formulas by hand, rows that fill up a batch, microbatches,
mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import DPO, KTO, ORPO, RewardModel, SimPO
from bigmodel_jax.objectives.kto import KTO as Kto
from bigmodel_jax.objectives.odds_ratio import log1mexp
from bigmodel_jax.objectives.pairs import Texts
from bigmodel_jax.objectives.preference import FORMS
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step

ROWS, LENGTH = 8, 12
OBJECTIVES = [DPO(), DPO(form="ipo"), ORPO(), SimPO(), KTO(), RewardModel(center=0.1)]
MODEL = dataclasses.replace(LlamaConfig.tiny(), num_layers=1)


def of_each(objectives, quick: bool = False) -> pytest.MarkDecorator:
    """quick: all are in the quick suite, which else has the first alone."""
    found = [
        pytest.param(o, id=type(o).__name__ + getattr(o, "form", ""), marks=() if quick or i < 1 else pytest.mark.slow)
        for i, o in enumerate(objectives)
    ]
    return pytest.mark.parametrize("objective", found)


def make_batch(rows: int = ROWS) -> dict[str, np.ndarray]:
    """Prompts and answers of unequal lengths; the two texts of a row share their prompt."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 64, (rows, 2, LENGTH + 1)).astype(np.int32)
    prompts = rng.integers(1, 5, (rows, 1, 1))
    ends = prompts + rng.integers(1, LENGTH - 5, (rows, 2, 1))
    place = np.arange(LENGTH)
    tokens[:, 1, :5] = np.where(np.arange(5) < prompts[:, 0], tokens[:, 0, :5], tokens[:, 1, :5])
    held = place <= ends
    return {
        "tokens": tokens[..., :-1] * held,
        "targets": tokens[..., 1:] * held,
        "segment_ids": held.astype(np.int32),
        "positions": np.broadcast_to(place, held.shape).astype(np.int32),
        "weights": ((place >= prompts - 1) & (place < ends)).astype(np.float32),
        "reference": rng.uniform(-30, -5, (rows, 2)).astype(np.float32),
        "label": (np.arange(rows) % 3 > 0).astype(np.int32),
    }


def config_of(objective, **train) -> Config:
    train = TrainConfig(**({"steps": 5, "batch_size": ROWS} | train))
    return Config(MODEL, objective, DataConfig(), OptimConfig(lr=1e-2, eps=1e-4), train=train)


def losses(config: Config, batch: dict, steps: int = 3) -> list[float]:
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, fixed, found = init_state(config, mesh), init_constants(config, mesh), []
    step = make_train_step(config, mesh)
    for _ in range(steps):
        state, sums = step(state, batch, fixed)
        found.append(float(sums["loss"].compute()))
    return found


@functools.cache
def compiled(objective):
    """The loss of an objective's fresh model as a function of the batch."""
    model = config_of(objective).make_model()
    tree = jax.jit(functools.partial(params.init, model.spec))(jax.random.key(0))
    return jax.jit(lambda batch: objective.loss(model, tree, batch, rng=None, train=False))


def of_loss(objective, batch):
    return compiled(objective)(batch)


@pytest.mark.slow
@pytest.mark.few("DPOsigmoid", "KTO")
@of_each(OBJECTIVES)
def test_the_loss_falls_and_every_answer_is_in_it(objective):
    found = losses(config_of(objective), make_batch(), 5)
    assert found[-1] < found[0]


@pytest.mark.few("KTO")
@pytest.mark.slow
@of_each(OBJECTIVES, quick=True)
def test_rows_that_fill_up_a_batch_change_nothing(objective):
    batch = make_batch()
    filled = {name: np.concatenate([x, x[:3]]) for name, x in batch.items()}
    filled["weights"][ROWS:] = 0.0
    filled["reference"][ROWS:] = 1e3
    whole, more = (jax.tree.map(float, of_loss(objective, x).metrics) for x in (batch, filled))
    assert whole.keys() == more.keys()
    for name, mean in whole.items():
        np.testing.assert_allclose(more[name].compute(), mean.compute(), rtol=1e-5, err_msg=name)
        assert name in ("nll",) or more[name].count <= ROWS


@pytest.mark.slow
@pytest.mark.few("DPOsigmoid")
@of_each([DPO(), SimPO(), RewardModel()])
def test_microbatches_part_no_pair(objective):
    np.testing.assert_allclose(
        losses(config_of(objective, microbatches=4), make_batch()),
        losses(config_of(objective), make_batch()),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("form", "smoothing", "expected"),
    [
        ("sigmoid", 0.0, lambda z: np.log1p(np.exp(-z))),
        ("sigmoid", 0.25, lambda z: 0.75 * np.log1p(np.exp(-z)) + 0.25 * np.log1p(np.exp(z))),
        ("hinge", 0.0, lambda z: np.maximum(0, 1 - z)),
        ("ipo", 0.0, lambda z: (z / 0.3 - 1 / 0.6) ** 2),
        ("robust", 0.25, lambda z: (0.75 * np.log1p(np.exp(-z)) - 0.25 * np.log1p(np.exp(z))) / 0.5),
    ],
)
def test_forms_by_hand(form, smoothing, expected):
    margin = np.array([-7.0, -0.5, 0.0, 2.0, 40.0])
    np.testing.assert_allclose(FORMS[form](jnp.asarray(margin), 0.3, smoothing), expected(0.3 * margin), rtol=1e-5)


def test_the_log_of_one_minus_a_probability_keeps_its_digits():
    x = np.array([-1e-6, -0.1, -0.69, -0.7, -3.0, -9.0])
    np.testing.assert_allclose(log1mexp(jnp.asarray(x)), np.log(-np.expm1(x)), rtol=1e-5)
    assert np.isfinite(jax.jit(jax.vmap(jax.grad(log1mexp)))(jnp.asarray(x))).all()


def test_the_odds_of_an_answer_of_probability_one_have_a_gradient():
    def loss(log_probs):
        texts = Texts(log_probs, jnp.ones((1, 2)), jnp.ones(1))
        return ORPO().terms(texts, jnp.zeros((2, 3)), {"segment_ids": jnp.ones((2, 3), jnp.int32)}).nats.sum()

    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.array([[0.0, -1.0]]))).all()


@pytest.mark.slow
def test_what_is_reported_of_pairs():
    batch = make_batch()
    found = {name: float(mean.compute()) for name, mean in of_loss(DPO(beta=0.5), batch).metrics.items()}
    ratios = np.array([found["chosen_log_prob"], found["rejected_log_prob"]]) - batch["reference"].mean(0)
    np.testing.assert_allclose([found["chosen_reward"], found["rejected_reward"]], 0.5 * ratios, rtol=1e-5)
    np.testing.assert_allclose(found["reward_margin"], found["chosen_reward"] - found["rejected_reward"], rtol=1e-4)
    assert 0 < found["preference_accuracy"] < 1
    for objective in OBJECTIVES:
        known = {metric.name for metric in objective.metrics}
        assert objective.summarize(of_loss(objective, batch).metrics).keys() <= known


def test_kto_by_hand():
    batch = make_batch()
    objective = Kto(beta=0.3, wanted_weight=2.0)
    ratios, wanted, kl = np.array([3.0, -1.0, 0.5]), np.array([True, False, True]), 0.7
    expected = [2 / (1 + np.exp(0.3 * 2.3)), 1 / (1 + np.exp(0.3 * 1.7)), 2 / (1 + np.exp(-0.3 * 0.2))]
    np.testing.assert_allclose(objective.values(jnp.asarray(ratios), jnp.asarray(wanted), kl), expected, rtol=1e-6)
    far = batch | {"reference": np.zeros_like(batch["reference"])}
    assert float(of_loss(objective, far).metrics["kl"].compute()) == 0.0, "the distance is at least 0"
    assert float(of_loss(objective, batch).metrics["kl"].compute()) >= 0.0


def test_the_reward_is_read_at_the_last_token():
    batch = make_batch()

    def rewards(batch):
        return float(of_loss(RewardModel(), batch).metrics["chosen_reward"].compute())

    last = batch["segment_ids"].sum(-1) - 1
    behind, changed = batch["tokens"].copy(), batch["tokens"].copy()
    for row in range(ROWS):
        behind[row, 0, last[row, 0] + 1 :] = 5
        changed[row, 0, last[row, 0]] = 1
    assert rewards(batch | {"tokens": behind}) == pytest.approx(rewards(batch), rel=1e-6)
    assert rewards(batch | {"tokens": changed}) != pytest.approx(rewards(batch), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": TrainConfig(steps=5, batch_size=8, microbatches=2)}, "train.microbatches = 2 cuts a batch"),
        ({"parallel": sharding.ParallelConfig(strategy="pmap")}, "parallel.strategy = 'pmap' cuts a batch"),
        ({"parallel": sharding.ParallelConfig(deterministic=True)}, "parallel.deterministic = True cuts a batch"),
        ({"objective": DPO(reference="adapters_off")}, "objective.reference = 'adapters_off': the run has no adapters"),
    ],
)
def test_what_is_refused_before_data_is_opened(change, said):
    with pytest.raises(ValueError, match=said):
        validate(dataclasses.replace(config_of(KTO()), **change))


def test_which_of_them_are_the_score_of_one_call():
    assert DPO().scores
    assert SimPO().scores
    assert RewardModel().scores
    assert not DPO(reference="adapters_off").scores
    assert not KTO().scores


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DPO(form="hinge", label_smoothing=0.1), "objective.form = 'hinge' has none"),
        (lambda: DPO(form="robust", label_smoothing=0.5), "needs less than 0.5"),
        (lambda: DPO(reference="constants").parameters(LlamaConfig.tiny()), "needs objective.reference_run"),
        (lambda: of_loss(DPO(reference="adapters_off"), make_batch()), "this run trains no adapters"),
        (lambda: of_loss(DPO(), {k: x for k, x in make_batch().items() if k != "reference"}), "has no 'reference'"),
    ],
)
def test_mistakes_are_one_line(make, said):
    with pytest.raises(ValueError, match=said):
        make()
