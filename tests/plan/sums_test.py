"""What a plan knows of a constant base, of what an objective keeps, and of a cache of rollouts,
before anything is compiled."""

import dataclasses
import io
import types

import jax
import pytest
from rich.console import Console

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Param, zeros
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import PromptData, TextData
from bigmodel_jax.models import LlamaConfig, Model
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.objectives import NextToken, PolicyGradient
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.plan import screen, sums, worker
from bigmodel_jax.plan.compile import Compiled
from bigmodel_jax.plan.estimate import memory_parts
from bigmodel_jax.plan.topology import parse
from bigmodel_jax.training.state import abstract_constants, abstract_state


@dataclasses.dataclass(frozen=True)
class Shift(AdapterConfig):
    """One vector beside a constant base."""

    base: BaseConfig = BaseConfig("nf4", 16, double=True)

    def adapt(self, model: Model) -> Model:
        own = {"adapters": {"shift": Param((32,), (None,), zeros())}}
        return model._replace(spec=self.base.freeze(model.spec) | own)


@dataclasses.dataclass(frozen=True)
class Sampled(NextToken):
    """An objective with a constant of its own, and rollouts of 4 rows of 24 tokens."""

    def parameters(self, model):
        return {"teacher": Param((16, 16), (None, None), zeros(), kind="constant")}

    def rollout_cache(self, data, batch_size):
        return 4, 24


MODEL = LlamaConfig.tiny()
PLAIN = Config(
    MODEL, NextToken(), TextData(seq_len=16), train=TrainConfig(batch_size=8), parallel=ParallelConfig(data=2)
)
ADAPTED = dataclasses.replace(PLAIN, adapters=Shift(), objective=Sampled())


def sizes(config: Config) -> dict:
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:2])
    found = worker.sizes(abstract_state(config, mesh), {}, abstract_constants(config, mesh), worker.kept_beside(config))
    return found | {"rollout_cache": worker.cache_bytes(config, mesh)}


def test_base_adapters_constants_and_cache_are_told_apart():
    found = sizes(ADAPTED)
    base = ADAPTED.adapters.base.freeze(MODEL.make().spec)
    assert found["base"] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params.abstract(base)))
    assert found["constants"] == 4 * 16 * 16
    assert found["parameters"] == found["base"] + found["constants"] + 4 * 32
    assert found["gradients"] == 4 * 32
    assert found["optimizer"] < 4 * 32 * 2 + 64
    # Keys and values of two layers, half of the four rows on a device; a position and a segment for
    # each column.
    heads = MODEL.num_kv_heads * MODEL.head_dim
    assert found["rollout_cache"] == 2 * 24 * (2 * 2 * heads * 4 + 2 * 4) + 4
    plain = sizes(PLAIN)
    assert (plain["base"], plain["constants"], plain["rollout_cache"]) == (0, 0, 0)


def test_the_table_and_what_is_used_have_a_row_of_each():
    found = sizes(ADAPTED)
    memory = {"peak_memory": 2**28, "argument": 0, "temp": 0, "output": 0, "alias": 0, "generated_code": 0}
    program = {"memory": {"gradients": 0, "activations": 0, "largest": []}}
    compiled = Compiled(None, True, 0, 0, 0, 0, 0, "", memory, found, 0, 0, 0, {}, program)
    parts = memory_parts(compiled, 2.0**34)
    assert parts["used"] == 2**27 + found["rollout_cache"]
    assert parts["parts"]["adapters"] == 4 * 32
    assert {"base", "constants", "optimizer", "rollout_cache"} <= parts["parts"].keys() <= screen.MEMORY.keys()
    assert sum(parts["parts"].values()) == pytest.approx(parts["used"])
    console = Console(file=io.StringIO(), width=80)
    console.print(screen.memory_table({"memory": parts}))
    for row in ("base", "adapters", "constants of the objective", "optimizer state", "cache of rollouts"):
        assert f"\n{row}  " in console.file.getvalue(), row


def test_a_batch_of_answers_has_what_is_computed_of_them_before_the_step():
    data = PromptData(max_prompt=8, max_tokens=8, updates_per_rollout=2)
    objective = PolicyGradient(reward=("unused",), kl=0.1, reference="adapters_off")
    config = dataclasses.replace(PLAIN, data=data, objective=objective)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:2])
    batch = worker.abstract_batch(config, mesh)
    assert {name: batch[name].shape for name in ("old_log_probs", "reference_log_probs")} == {
        "old_log_probs": (8, 16),
        "reference_log_probs": (8, 16),
    }
    flops, attention = worker.model_flops(config, mesh, batch)
    assert 0 < attention < flops, "a batch of half the length is one in every array"


@pytest.mark.parametrize(("optimizer", "arrays"), [("adamw", 2), ("sgd", 1), ("lion", 1)])
def test_sums_count_the_moments_that_an_optimizer_keeps(optimizer, arrays):
    config = dataclasses.replace(PLAIN, optim=OptimConfig(optimizer))
    known = sums.facts(config)
    count = params.count(MODEL.make().spec)
    assert known.trained == count
    assert abs(known.moments - 4 * arrays * count) < 100


def test_sums_of_a_constant_base_need_less_memory_and_time():
    chips, plain = parse("v5e:1x1"), dataclasses.replace(PLAIN, parallel=ParallelConfig(data=1))
    adapted = dataclasses.replace(plain, adapters=Shift())
    memory, seconds = zip(*(sums.sums(config, chips) for config in (plain, adapted)), strict=True)
    assert memory[1] < 0.6 * memory[0]
    assert 0.5 * seconds[0] < seconds[1] < seconds[0], "two products of three for each weight"


def test_rollouts_of_a_policy_have_as_many_rows_as_slots_that_a_batch_fills():
    data = types.SimpleNamespace(slots=64, seq_len=384, prompts=True)
    assert PolicyGradient().rollout_cache(data, 16) == (16, 384)
    assert PolicyGradient().rollout_cache(data, 512) == (64, 384)
    assert NextToken().rollout_cache(types.SimpleNamespace(prompts=False), 512) is None
