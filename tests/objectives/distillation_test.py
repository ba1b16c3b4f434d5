"""A student beside its teacher: the loss by hand, on every layout, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import GPT2Config, LlamaConfig
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.objectives import Distillation
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import accumulate, make_train_step

STUDENT = dataclasses.replace(LlamaConfig.tiny(), init_std=0.2)  # far from uniform distributions
TEACHER = dataclasses.replace(GPT2Config.tiny(), num_layers=3, embed_dim=48, num_heads=4, init_std=0.2)
EVERYTHING = Distillation(
    teacher="runs/teacher",
    teacher_model=TEACHER,
    kind="jsd",
    beta=0.3,
    temperature=2.0,
    alpha=0.6,
    student_layers=(0, 1),
    teacher_layers=(0, 2),
    hidden_weight=0.1,
    z_loss=1e-3,
)
B, T = 8, 12
LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
}


def batch_of(seed=0):
    """Tokens whose weights are of unequal length: the second half of some rows does not count."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, STUDENT.vocab_size, (B, T + 1)).astype(np.int32)
    weights = (np.arange(T) < rng.integers(2, T + 1, (B, 1))).astype(np.float32)
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "weights": jnp.asarray(weights),
    }


def config_of(objective=EVERYTHING, layout=None, **train):
    parallel = ParallelConfig(**(layout or {"data": 1}))
    train = TrainConfig(**({"steps": 5, "batch_size": B} | train))
    return Config(STUDENT, objective, DataConfig(), parallel=parallel, train=train)


def gradients(config, batch):
    """(gradients, loss, metrics) of one step as its mesh computes them, with weights of seed 0."""
    devices = jax.devices()[: int(np.prod(config.parallel.sizes()))]
    mesh = sharding.make_mesh(config.parallel, devices)
    state, constants = init_state(config, mesh), init_constants(config, mesh)

    def fn(trained, constants, batch):
        constants = cast(constants, config.precision.compute)  # as a step does
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            return accumulate(config, config.make_model(), trained, state.frozen, batch, jax.random.key(0), constants)[
                :3
            ]

    grads, mean, sums = jax.jit(fn)(state.params, constants, batch)
    return jax.device_get((jax.tree.map(lambda g: g / mean.count, grads), mean.compute(), sums))


def equal(got, want):
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
    for name, sums in want[2].items():
        np.testing.assert_allclose(got[2][name].total, sums.total, rtol=2e-5, err_msg=name)
    mine = params.paths(got[0])
    for path, grad in params.paths(want[0]).items():
        np.testing.assert_allclose(mine[path], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=path)


@pytest.fixture(scope="module")
def alone():
    """The gradients on one device with whole logits."""
    return gradients(config_of(), batch_of())


@pytest.mark.slow
def test_the_loss_by_hand(alone):
    """The test writes each part of the loss out, over the targets with weight alone, and sums the
    parts."""
    config, batch = config_of(), batch_of()
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, teacher = init_state(config, mesh), init_constants(config, mesh)["teacher"]
    assert {x.dtype for x in jax.tree.leaves(teacher)} == {jnp.dtype("bfloat16")}
    teacher = jax.tree.map(lambda x: x.astype(jnp.float32), teacher)
    weights, both = np.asarray(batch["weights"]), ((STUDENT, state.params), (TEACHER, teacher))
    outs = [jax.jit(lambda tree, m=cfg.make(): m.apply(tree, batch).value)(tree) for cfg, tree in both]
    p, q = (np.asarray(jax.nn.softmax(out / 2.0), np.float64) for out in outs)
    m = 0.3 * q + 0.7 * p
    divergence = (0.3 * q * np.log(q / m) + 0.7 * p * np.log(p / m)).sum(-1)
    log_p = np.asarray(jax.nn.log_softmax(outs[0]), np.float64)
    nats = -np.take_along_axis(log_p, np.asarray(batch["targets"])[..., None], axis=-1)[..., 0]
    log_z = np.asarray(jax.nn.logsumexp(outs[0], axis=-1), np.float64)
    _, loss, sums = alone
    for name, each in (("loss", nats), ("divergence", divergence)):
        np.testing.assert_allclose(sums[name].total, (each * weights).sum(), rtol=1e-5)
    hidden = sums["hidden"].total
    assert hidden > 0
    total = ((0.4 * nats + 0.6 * divergence + 1e-3 * log_z**2) * weights).sum() + 0.1 * hidden
    np.testing.assert_allclose(loss, total / weights.sum(), rtol=1e-5)


@pytest.mark.slow
def test_hidden_states_are_those_behind_the_layers_named():
    """The student is its own teacher, so the same layers are equal, and others are not."""
    same = dataclasses.replace(
        EVERYTHING, teacher_model=STUDENT, teacher_dtype="float32", student_layers=(1,), teacher_layers=(1,)
    )
    # Equal states have no error whatever the scale, and opposite ones the largest.
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, STUDENT.embed_dim))
    one = dataclasses.replace(same, student_layers=(0,), teacher_layers=(0,))
    for factor, error in ((5.0, 0.0), (-5.0, 4.0)):
        np.testing.assert_allclose(one.hidden_error({}, x, factor * x), error, atol=1e-5)
    for layer, far in ((1, False), (0, True)):
        config = config_of(dataclasses.replace(same, teacher_layers=(layer,)))
        assert "hidden_map" not in config.make_model().spec
        model = config.make_model()
        own = params.init(STUDENT.make().spec, jax.random.key(0))
        loss = config.objective.loss(model, own | {"teacher": own}, batch_of(), rng=None, train=True)
        assert (float(loss.metrics["hidden"].compute()) > 1e-3) == far
        np.testing.assert_allclose(loss.metrics["divergence"].compute(), 0.0, atol=1e-6)


# The slow suite lays out the loss of the likeliest tokens alone, which asks more of a layout.
@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["fsdp_tp", "data", "fsdp"])
def test_every_layout_equals_one_device(alone, layout):
    """The layouts compute the logits in blocks, and the single device computes them whole."""
    objective = dataclasses.replace(EVERYTHING, logits="blocks")
    equal(gradients(config_of(objective, LAYOUTS[layout]), batch_of()), alone)


@pytest.mark.exhaustive  # nn/head_losses_test.py has both forms of top k on a mesh in the slow suite
@pytest.mark.parametrize("layout", ["fsdp_tp", "data", "fsdp"])
@pytest.mark.parametrize("more", [{"top_k": 5}, {"top_k": 5, "rest": "renormalised", "kind": "reverse_kl"}])
def test_top_k_on_every_layout_equals_one_device(layout, more):
    objective = dataclasses.replace(EVERYTHING, **more)
    in_blocks = dataclasses.replace(objective, logits="blocks")
    equal(gradients(config_of(in_blocks, LAYOUTS[layout]), batch_of()), gradients(config_of(objective), batch_of()))


@pytest.mark.slow
def test_microbatches_of_unequal_counts_equal_the_whole_batch(alone):
    equal(gradients(config_of(microbatches=4), batch_of()), alone)


@pytest.mark.slow
def test_a_step_trains_the_student_and_the_map_and_an_evaluation_reports_the_teacher():
    config = config_of()
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, constants = init_state(config, mesh), init_constants(config, mesh)
    assert {path.split("/")[0] for path in params.paths(constants)} == {"teacher"}
    assert "teacher" not in state.params
    before = jnp.copy(state.params["hidden_map"]["kernel"])
    state, _ = make_train_step(config, mesh)(state, batch_of(), constants)
    assert not jnp.array_equal(before, state.params["hidden_map"]["kernel"])
    sums = make_eval_step(config, mesh)(params.merge(state.params, state.frozen, constants), batch_of())
    found = config.objective.summarize(jax.device_get(sums))
    assert {"loss", "divergence", "hidden", "agreement", "teacher_loss", "distillation_loss"} <= found.keys()
    assert 0 <= found["agreement"] <= 1
    assert found["teacher_loss"] > np.log(STUDENT.vocab_size) - 0.5


# ----------------------------------------------------------------------------- the teacher's folder


def folder_of(tmp_path, model=TEACHER, **fields):
    config = dataclasses.replace(config_of(), model=model, **fields)
    config_file.save(config, tmp_path / "config.json")
    return str(tmp_path)


def test_the_teacher_is_read_from_its_folder(tmp_path):
    folder = folder_of(tmp_path)
    for name in (folder, f"{folder}@best", f"{folder}@7"):
        objective = Distillation(teacher=name)
        assert objective.teacher_config() == TEACHER
        assert objective.sources() == {"teacher": name}
    spec = config_of(objective).make_model().spec
    assert {p.kind for p in params.paths(spec["teacher"]).values()} == {"constant"}


@dataclasses.dataclass(frozen=True)
class Adapters(AdapterConfig):
    rank: int = 2


def refused(objective, message, **fields):
    config = dataclasses.replace(config_of(objective), **fields)
    with pytest.raises(ValueError, match=message) as error:
        validate(config, int(np.prod(config.parallel.sizes())))
    assert "\n" not in str(error.value)


def test_what_is_refused_in_one_line(tmp_path):
    change = dataclasses.replace
    refused(Distillation(), "objective.teacher = '': give the folder")
    refused(Distillation(teacher="nowhere"), "objective.teacher = 'nowhere' is not a run's folder")
    other = folder_of(tmp_path, change(TEACHER, vocab_size=65))
    refused(Distillation(teacher=other), "the teacher has another vocabulary, of 65 tokens, and model.vocab_size = 64")
    adapted = folder_of(tmp_path, adapters=Adapters())
    refused(Distillation(teacher=adapted), "has adapters; merge them")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"type": "bigmodel_jax.models.llama:Nothing"}}))
    refused(Distillation(teacher=str(tmp_path)), "is unknown")
    refused(change(EVERYTHING, teacher_layers=(0,)), "differ in length")
    refused(change(EVERYTHING, teacher_layers=(0, 3)), "3 is not from 0 to 2")
    refused(change(EVERYTHING, top_k=64), "must be below the vocabulary, 64")
    piped = ParallelConfig(stage=2, data=1, pipeline_schedule="1f1b")
    refused(
        change(EVERYTHING, student_layers=(), teacher_layers=()),
        r"needs an objective that defines score",
        parallel=piped,
    )
