"""A teacher and a reference in 8 or 4 bits say what the same numbers say as float32 arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Blocked, dense, stored
from bigmodel_jax.data import DataConfig, PromptData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.objectives import DPO, KTO, Distillation, PolicyGradient
from bigmodel_jax.training.rollouts import make_log_probs
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import accumulate

MODEL = dataclasses.replace(LlamaConfig.tiny(), num_layers=2, init_std=0.2)
PLAIN = BaseConfig()
STORAGES = {
    "nf4": BaseConfig("nf4", 16, double=True, tables="bfloat16"),
    "int4": BaseConfig("int4", 16),
    "int8": BaseConfig("int8", 32, double=True),
    "bfloat16": BaseConfig("bfloat16", tables="bfloat16"),
}
TEACHER = Distillation(
    teacher="another", teacher_model=MODEL, teacher_dtype="float32", student_layers=(1,), teacher_layers=(1,)
)
OBJECTIVES = {
    "teacher": (TEACHER, "teacher_storage"),
    "dpo": (DPO(reference="constants", reference_run="another"), "reference_storage"),
    "kto": (KTO(reference="constants", reference_run="another"), "reference_storage"),
}
POLICY = PolicyGradient(reward=("unused",), kl=0.1, reference="another")
LAYOUT = {"data": 2, "fsdp": 2, "tensor": 2}
B, T = 8, 10


def config_of(objective, storage, field, layout=None, data=None) -> Config:
    objective = dataclasses.replace(objective, **{field: storage})
    parallel = ParallelConfig(**(layout or {"data": 1}))
    return Config(MODEL, objective, data or DataConfig(), parallel=parallel, train=TrainConfig(steps=5, batch_size=B))


def mesh_of(config):
    return sharding.make_mesh(config.parallel, jax.devices()[: int(np.prod(config.parallel.sizes()))])


def batch_of(objective):
    rng = np.random.default_rng(0)
    texts = (objective.texts,) if objective.texts == 2 else ()
    tokens = rng.integers(1, MODEL.vocab_size, (B, *texts, T + 1)).astype(np.int32)
    weights = (np.arange(T) < rng.integers(3, T + 1, (B, *texts, 1))).astype(np.float32)
    found = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}
    if isinstance(objective, KTO):
        found |= {"label": np.arange(B) % 2, "segment_ids": np.ones_like(found["tokens"])}
        found["positions"] = np.cumsum(found["segment_ids"], axis=-1, dtype=np.int32) - 1
    return {name: jnp.asarray(x) for name, x in found.items()}


def constants_of(config):
    """The constants as they are stored, and the same numbers as float32 arrays."""
    kept = init_constants(config, mesh_of(config))
    return kept, jax.tree.map(lambda x: dense(x, jnp.float32).astype(jnp.float32), kept, is_leaf=stored)


def losses(config, *constants):
    """The loss of one batch beside each of the constants; the trained weights are those of seed
    0."""
    mesh, batch, model = mesh_of(config), batch_of(config.objective), config.make_model()
    state = init_state(config, mesh)

    @jax.jit
    def fn(trained, constants, batch):
        weights = params.merge(trained, state.frozen, cast(constants, "float32"))  # as a step does
        mean = config.objective.loss(model, weights, batch, rng=None, train=True).mean
        return mean.total / mean.count

    return [float(fn(state.params, each, batch)) for each in constants]


def gradients(config, constants):
    """(gradients of the sum, loss) of one batch, with trained weights of seed 0."""
    mesh, batch = mesh_of(config), batch_of(config.objective)
    state = init_state(config, mesh)

    def fn(trained, constants, batch):
        constants = cast(constants, "float32")
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            model, key = config.make_model(), jax.random.key(0)
            return accumulate(config, model, trained, state.frozen, batch, key, constants)[:2]

    grads, mean = jax.device_get(jax.jit(fn)(state.params, constants, batch))
    return params.paths(grads), float(mean.compute())


def close(got, want):
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
    for path, grad in want[0].items():
        np.testing.assert_allclose(got[0][path], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=path)


@pytest.mark.few("dpo-int4")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "storage"),
    [
        ("teacher", "nf4"),
        ("dpo", "int4"),
        *(
            pytest.param(n, s, marks=pytest.mark.exhaustive)
            for n in OBJECTIVES
            for s in STORAGES
            if (n, s) not in (("teacher", "nf4"), ("dpo", "int4"))
        ),
    ],
)
def test_a_stored_one_gives_the_loss_of_its_numbers(name, storage):
    objective, field = OBJECTIVES[name]
    config, plain = (config_of(objective, s, field) for s in (STORAGES[storage], PLAIN))
    kept, numbers = constants_of(config)
    others = jax.tree.map(lambda x: 1.02 * x, numbers)
    (found,), (wanted, other) = losses(config, kept), losses(plain, numbers, others)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found != pytest.approx(other, rel=1e-4), "they count"
    matrices = [x for path, x in params.paths(kept).items() if "/layers/attn/" in path or "/layers/mlp/" in path]
    assert matrices
    assert all(isinstance(x, Blocked) and x.kind == STORAGES[storage].matrices for x in matrices)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["teacher", "dpo"])
def test_on_a_mesh_it_gives_what_one_device_gives(name):
    objective, field = OBJECTIVES[name]
    ways = [config_of(objective, STORAGES["nf4"], field, layout) for layout in (None, LAYOUT)]
    close(*(gradients(config, constants_of(config)[0]) for config in reversed(ways)))


@pytest.mark.slow
@pytest.mark.parametrize("storage", few(("int8", "nf4", "int4"), "int8"))
def test_the_reference_of_a_policy_gradient_is_read_as_it_is_stored(storage):
    config, plain = (config_of(POLICY, s, "reference_storage", data=PromptData()) for s in (STORAGES[storage], PLAIN))
    kept, numbers = constants_of(config)
    found = []
    others = jax.tree.map(lambda x: 1.02 * x, numbers)
    for each, constants in ((config, kept), (plain, numbers), (plain, others)):
        weights = params.merge(init_state(each, mesh_of(each)).params, constants)
        found.append(make_log_probs(each, mesh_of(each))(weights, batch_of(POLICY))["reference_log_probs"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(np.asarray(found[0]) - np.asarray(found[2])).max() > 1e-4


def test_a_teacher_keeps_in_its_dtype_what_the_storage_leaves_alone():
    for storage, kept, tables in (
        (PLAIN, "bfloat16", "bfloat16"),
        (BaseConfig(tables="bfloat16"), "float32", "bfloat16"),
    ):
        objective = dataclasses.replace(TEACHER, teacher_dtype=kept)
        spec = params.paths(config_of(objective, storage, "teacher_storage").make_model().spec)
        assert {p.kind for path, p in spec.items() if path.startswith("teacher/")} == {"constant"}
        assert spec["teacher/layers/attn/q"].dtype == kept
        assert spec["teacher/embed/table"].dtype == tables


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (DPO(reference_storage=BaseConfig("nf4")), "objective.reference_storage with objective.reference = 'cached'"),
        (PolicyGradient(reward=("unused",), reference_storage=BaseConfig("nf4")), "with objective.kl = 0"),
    ],
)
def test_a_storage_of_nothing_is_refused_in_one_line(objective, message):
    with pytest.raises(ValueError, match=message) as error:
        objective.parameters(MODEL)
    assert "\n" not in str(error.value)
