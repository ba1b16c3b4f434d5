"""A program of the cache keeps the times of its own compilation.

This machine's compiler stands in for the chip's.
"""

import dataclasses
import importlib.util
import subprocess
import sys

import jax
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData, TextFiles
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.plan import compile as compiling
from bigmodel_jax.plan import serving_worker, worker
from bigmodel_jax.plan.chips import GIB

CONFIG = Config(
    model=dataclasses.replace(LlamaConfig.tiny(), num_layers=1),
    objective=NextToken(),
    data=TextData(source=TextFiles("none.txt", "none.txt"), seq_len=16),
    parallel=ParallelConfig(data=1),
    train=TrainConfig(batch_size=2),
)
SERVING = {"slots": 2, "length": 32, "prompt": 8}
REQUESTS = {worker: {"slices": 1}, serving_worker: {"slices": 1, "program": "decode", "serving": SERVING}}


@pytest.mark.parametrize(
    "module",
    [pytest.param(worker, marks=pytest.mark.slow, id="worker"), pytest.param(serving_worker, id="serving_worker")],
)
def test_a_program_of_the_cache_has_the_times_of_its_own_compilation(module, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path))
    monkeypatch.setattr(worker.topologies, "compile_devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr(module, "cache_key", lambda *args: "key")
    monkeypatch.setattr(module, "analyse", lambda *args, **options: {})
    request = {"config": config_file.to_json(CONFIG), "topology": "v5e:1x1", "cache": str(compiling.root())}
    first, second = (compiling.read(module.run(request | REQUESTS[module]), 0.5) for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    assert first.lower_seconds > 0
    for name in ("lower_seconds", "compile_seconds", "cpu_seconds"):
        assert getattr(first, name) == getattr(second, name), name


REFUSED = """
import jax, jax.numpy as jnp
from bigmodel_jax.plan import topology
place = jax.sharding.SingleDeviceSharding(topology.compile_devices(topology.parse("v5e:1x1", 1))[0])
halves = [jax.ShapeDtypeStruct((gib * 1024, 1024, 512), jnp.bfloat16, sharding=place) for gib in (9, 8)]
try:
    jax.jit(lambda a, b: a.sum() + b.sum()).lower(*halves).compile()
except jax.errors.JaxRuntimeError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra plan is not installed")
def test_a_refused_program_states_the_bytes_of_its_arguments_too(tmp_path):
    environment = compiling.environment("tpu", str(tmp_path))
    command = [sys.executable, "-c", REFUSED]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert compiling.stated_bytes(done.stdout, 0.0) == 17 * GIB
    assert compiling.stated_bytes(done.stdout, 18 * GIB) == 18 * GIB
    assert compiling.stated_bytes("another message", 2.0) == 2.0
