"""Preference and policy steps of a large vocabulary: no array of tokens x vocabulary in the
compiled program."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import PreferenceData, PromptData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.nn.head import BLOCK_BYTES
from bigmodel_jax.objectives import DPO, PolicyGradient
from bigmodel_jax.plan.program import memory
from bigmodel_jax.plan.program.instructions import Code
from bigmodel_jax.plan.worker import abstract_batch
from bigmodel_jax.training.rollout_arrays import wanted
from bigmodel_jax.training.rollouts import make_log_probs
from bigmodel_jax.training.state import abstract_constants, abstract_state
from bigmodel_jax.training.step import make_train_step

VOCAB, ROWS, LENGTH = 128_256, 8, 512
MODEL = LlamaConfig(
    vocab_size=VOCAB, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8, max_seq_len=LENGTH
)
PAIRS = PreferenceData(seq_len=LENGTH)
PROMPTS = PromptData(max_prompt=LENGTH // 2, max_tokens=LENGTH // 2, group=2)
CASES = {
    "dpo": (DPO(reference="adapters_off"), PAIRS, 2 * ROWS * LENGTH),
    "grpo": (PolicyGradient(reward=("unused",), kl=0.1, reference="adapters_off"), PROMPTS, ROWS * LENGTH),
}


def config_of(name: str, adapters: bool, logits: str = "auto") -> tuple[Config, int]:
    """(config, tokens of a step)"""
    objective, data, tokens = CASES[name]
    alone = {} if adapters else {"reference": "cached"} if name == "dpo" else {"kl": 0.0, "reference": ""}
    objective = dataclasses.replace(objective, logits=logits, **alone)
    more = {"adapters": Lora(targets="layers/.*", rank=2)} if adapters else {}
    train = TrainConfig(steps=2, batch_size=ROWS)
    return Config(MODEL, objective, data, parallel=ParallelConfig(data=1), train=train, **more), tokens


def programs(config: Config) -> list[str]:
    """The step, and what is computed of a rollout before it."""
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, batch, constants = (
        abstract_state(config, mesh),
        abstract_batch(config, mesh),
        abstract_constants(config, mesh),
    )
    if isinstance(config.objective, DPO):
        return [make_train_step(config, mesh).lower(state, batch, constants).compile().as_text()]
    weights = params.merge(state.params, state.frozen, constants)
    before = [make_log_probs(config, mesh).lower(weights, batch)] if wanted(config) else []
    return [x.compile().as_text() for x in (*before, make_train_step(config, mesh).lower(state, batch, constants))]


def largest(text: str) -> int:
    """Elements of the largest array that the program names."""
    shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred|f16|s8|u8)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapters"),
    [
        ("dpo", True),
        ("grpo", True),
        pytest.param("dpo", False, marks=pytest.mark.exhaustive),
        pytest.param("grpo", False, marks=pytest.mark.exhaustive),
    ],
)
def test_log_probabilities_of_128k_tokens_are_made_block_by_block(name, adapters):
    """No array is larger than a block, and the peak memory is a fraction of the logits' size."""
    config, tokens = config_of(name, adapters)
    for text in programs(config):
        assert largest(text) <= BLOCK_BYTES / 4 < tokens * VOCAB / 8
        assert sum(buffer.bytes for buffer in memory.at_the_peak(Code(text))) < 4 * tokens * VOCAB / 3


@pytest.mark.slow
def test_logits_in_memory_would_be_seen():
    """The same measure finds the logits where the config asks for them."""
    config, tokens = config_of("dpo", adapters=True, logits="whole")
    (text,) = programs(config)
    assert largest(text) >= tokens * VOCAB
    assert max(buffer.bytes for buffer in memory.at_the_peak(Code(text))) >= 4 * tokens * VOCAB
