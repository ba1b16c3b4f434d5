"""What a process asks for before JAX starts."""

import glob
import importlib.util
import os
import subprocess
import sys

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


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU's runtime is not installed")
@pytest.mark.skipif(any(map(glob.glob, runtime.ACCELERATORS)), reason="this machine has an accelerator")
def test_a_script_hears_nothing_of_the_tpus_runtime():
    """The extra `plan` installs libtpu, and JAX tries it first unless it is told to use the CPU."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    code = "import bigmodel_jax, jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("cpu\n", "")


def test_what_the_environment_says_of_the_tpu_wins(monkeypatch):
    monkeypatch.setattr(runtime, "ACCELERATORS", ())
    for given, found in (({"TPU_WORKER_HOSTNAMES": "a,b"}, "a,b"), ({}, "localhost"), ({"JAX_PLATFORMS": "cpu"}, None)):
        environment = dict(given)
        monkeypatch.setattr(runtime.os, "environ", environment)
        runtime.quiet_tpu_runtime()
        assert environment.get("TPU_WORKER_HOSTNAMES") == found
