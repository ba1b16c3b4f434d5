"""What a process asks for before JAX starts."""

import pytest

from bigmodel_jax import runtime


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_environments_share_of_a_gpus_memory_wins(monkeypatch, name):
    environment = {name: "0.5"}
    monkeypatch.setattr(runtime.os, "environ", environment)
    runtime.use_gpu_memory()
    assert environment == {name: "0.5"}


def test_a_run_may_use_what_a_plan_counts_with(monkeypatch):
    environment = {}
    monkeypatch.setattr(runtime.os, "environ", environment)
    runtime.use_gpu_memory()
    assert environment == {"XLA_CLIENT_MEM_FRACTION": "0.92"}
