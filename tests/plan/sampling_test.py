"""The time in which a planned run samples its own answers."""

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import TextData
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken, PolicyGradient
from bigmodel_jax.plan import sampling, screen
from bigmodel_jax.plan.serving import Serving

ROOT = Path(__file__).parents[2]
DATA = PromptData(max_prompt=40, max_tokens=25, slots=4)
CONFIG = Config(LlamaConfig.tiny(), PolicyGradient(reward=("unused",)), DATA, train=TrainConfig(batch_size=8))
TINY = """
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import PolicyGradient

def right(prompt, response, record):
    return 1.0

def get_config():
    model = LlamaConfig(vocab_size=256, embed_dim=128, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=128, mlp_dim=256)
    data = PromptData(max_prompt=40, max_tokens=24, group=4, slots=4, updates_per_rollout=2)
    return Config(model, PolicyGradient(reward=right), data, train=TrainConfig(steps=10, batch_size=8),
                  parallel=ParallelConfig(data=2))
"""


def test_slots_are_those_of_the_engine_that_samples():
    assert sampling.serving_of(CONFIG) == Serving(slots=4, length=80, prompt=40)
    assert sampling.serving_of(dataclasses.replace(CONFIG, objective=NextToken(), data=TextData())) is None
    assert sampling.serving_of(dataclasses.replace(CONFIG, objective=NextToken())) == Serving(4, 80, 40)
    own = dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, rollouts="mine.py:rollouts"))
    assert sampling.serving_of(own) is None


def test_a_run_takes_the_time_of_its_steps_and_of_its_rollouts():
    run = {"seconds": 20.0, "steps": 10.0, "chip_hours": 4.0, "dollars": 2.0, "tokens": 7.0}
    plan = sampling.with_sampling({"run": run}, {"sampling": {"step_seconds": 3.0}})
    assert plan["run"] == run | {"seconds": 50.0, "chip_hours": 10.0, "dollars": 5.0}
    assert sampling.of_step(plan) == 3.0
    refused = {"sampling": {"refused": "Ran out of memory"}}
    assert sampling.with_sampling({"run": run}, {}) == {"run": run}
    assert sampling.with_sampling({"run": run}, refused) == {"run": run} | refused
    assert screen.sampling_rows(refused) == [("sampling", "DOES NOT FIT: Ran out of memory")]


@pytest.mark.exhaustive
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed: uv sync --extra plan")
def test_sampling_takes_the_time_of_the_programs_of_a_server_of_the_same_shape(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "JAX_", "XLA_"))}

    def planned(*options: str) -> dict:
        command = [sys.executable, str(ROOT / "launch.py"), "plan", "tiny.py", "--output", "out", *options]
        cache = {"BIGMODEL_CACHE": str(tmp_path / "cache")}
        subprocess.run(command, cwd=tmp_path, env=env | cache, check=True, capture_output=True)
        return json.loads((tmp_path / "out" / "plan.json").read_text())

    plan = planned("--topology", "v5e:1x2")
    shape = ("--slots", "4", "--length", "64", "--prompt", "40")
    server = planned("--serve", "v5e:1x2", *shape, "--parallel.data", "2", "--parallel.tensor", "1")
    found = plan["sampling"]
    prefill, decode = (server[name]["step_seconds"] for name in ("prefill", "decode"))
    assert (found["prefill_seconds"], found["decode_seconds"]) == (prefill, decode)
    assert found["rollout_seconds"] == pytest.approx(8 * prefill + 2 * 23 * decode)
    assert plan["run"]["seconds"] == pytest.approx(10 * (plan["step_seconds"] + found["rollout_seconds"] / 2))
    console = Console(file=io.StringIO(), width=120)
    screen.show(plan, console)
    assert "8 answers of 24 tokens in 4 slots at most" in console.file.getvalue()
