"""Distillation against TRL's: GKD's divergence of fixed logits, and the loss and gradients of a
student on one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

import reference
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import DataConfig
from bigmodel_jax.nn import head_losses
from bigmodel_jax.nn.head import Head
from bigmodel_jax.objectives import Distillation
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.pretrained.names import Tensor
from bigmodel_jax.training.step import accumulate

PROMPT = 5
GKD = {
    "forward": {"kind": "forward_kl"},
    "jsd": {"kind": "jsd", "beta": 0.3, "temperature": 2.0},
    "even": {"kind": "jsd", "beta": 0.5, "temperature": 0.7},
    "reverse": {"kind": "reverse_kl", "temperature": 2.0},
}
TRAINER = {
    "forward": {"kind": "forward_kl"},
    "jsd": {"kind": "jsd"},
    "warm": {"kind": "jsd", "beta": 0.2, "temperature": 2.0},
    "reverse": {"kind": "reverse_kl"},
}


def of_both_forms(cases) -> list:
    """Every case in both forms. Slow are all in blocks, and one with the logits in memory;
    tests/nn/head_losses_test.py shows that both forms are equal."""
    pairs = [(case, form) for case in cases for form in ("blocks", "whole")]
    return few(pairs, ("reverse", "whole"), *(pair for pair in pairs if pair[1] == "blocks"))


@pytest.fixture(scope="module")
def theirs(request, tmp_path_factory):
    """(family, (config, weights) of the student, those of the teacher, what TRL computed)."""
    python = request.config.getoption("--reference-python")
    found = reference.fixture_folder("distillation", python, tmp_path_factory.mktemp("reference"))
    with np.load(found / "reference.npz") as arrays:
        arrays = dict(arrays)
    models = []
    for path in (found, found / "teacher"):
        family, cfg = reference.folder.read_config(path)
        models.append((cfg, reference.read(family, cfg, reference.folder.open_weights(path))))
    return family, *models, arrays


@pytest.mark.slow
@pytest.mark.parametrize(("case", "form"), of_both_forms(GKD))
def test_divergence_of_logits_is_that_of_gkd(theirs, case, form):
    arrays = theirs[-1]
    student, teacher, mask = (arrays[f"gkd/{name}"] for name in ("student", "teacher", "mask"))

    def loss(logits):
        heads = (Head(x, jnp.eye(logits.shape[-1])) for x in (logits, jnp.asarray(teacher)))
        return jnp.sum(head_losses.divergence(*heads, **GKD[case], form=form, columns=3) * mask) / mask.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student))
    assert abs(float(value) - arrays[f"gkd/loss/{case}"]) <= 1e-5
    assert reference.distance(gradient, arrays[f"gkd/grad/{case}"]) <= 1e-5


def batch_of(arrays) -> dict[str, jax.Array]:
    """Rows of prompt and completion, each token beside the one that follows it."""
    whole = np.concatenate([arrays["prompt_ids"], arrays["completion_ids"]], axis=1).astype(np.int32)
    weights = np.pad(arrays["completion_mask"].astype(np.float32), ((0, 0), (PROMPT - 1, 0)))
    segments = np.concatenate([arrays["prompt_mask"], arrays["completion_mask"]], axis=1)[:, :-1].astype(np.int32)
    batch = {"tokens": whole[:, :-1], "targets": whole[:, 1:], "weights": weights, "segment_ids": segments}
    return jax.tree.map(jnp.asarray, batch)


def config_of(cfg, teacher, case, logits):
    named = {"teacher": "runs/teacher", "teacher_model": teacher, "teacher_dtype": "float32"}
    objective = Distillation(**named, alpha=1.0, logits=logits, **TRAINER[case])
    optim = OptimConfig(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, schedule="constant", warmup_steps=0, clip=1.0)
    return Config(cfg, objective, DataConfig(), optim=optim, train=TrainConfig(steps=20, batch_size=4))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "logits"), of_both_forms(TRAINER))
def test_loss_and_gradients_of_a_student_are_those_of_trl(theirs, case, logits):
    family, (cfg, tree), (teacher, constants), arrays = theirs
    config = config_of(cfg, teacher, case, logits)
    batch, constants = batch_of(arrays), {"teacher": constants}
    grads, mean, sums, _ = accumulate(config, config.make_model(), tree, {}, batch, jax.random.key(0), constants)
    assert abs(float(mean.compute()) - arrays[f"loss/{case}"]) <= 1e-5 * float(sums["divergence"].compute())
    prefix = f"grad/{case}/"
    expected = {k.removeprefix(prefix): tensor(x) for k, x in arrays.items() if k.startswith(prefix)}
    expected = params.paths(reference.read(family, cfg, expected))
    assert max(float(jnp.abs(x).max()) for x in expected.values()) > 1e-3
    for path, gradient in params.paths(grads).items():
        assert reference.distance(gradient / mean.count, expected[path]) <= 1e-5, path


@pytest.mark.exhaustive  # the loss and its gradients are compared above
@pytest.mark.parametrize("case", TRAINER)
def test_twenty_steps_are_those_of_trl(theirs, case):
    """Both sides take AdamW's steps on one batch, from the same weights."""
    _, (cfg, tree), (teacher, constants), arrays = theirs
    config = config_of(cfg, teacher, case, "auto")
    batch, constants = batch_of(arrays), {"teacher": constants}
    losses = reference.losses_of_steps(config, tree, batch, constants, "distillation_loss")
    assert reference.distance(losses, arrays[f"losses/{case}"]) <= 1e-3
    assert losses[-1] < 0.9 * losses[0]


def tensor(x: np.ndarray) -> Tensor:
    return Tensor(x.shape, x.dtype.name, lambda: x)
