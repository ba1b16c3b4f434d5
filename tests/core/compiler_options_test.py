"""Which devices' programs are compiled with options of ours."""

import types

import jax

from bigmodel_jax.core.compiler_options import compiler_options

V5P = types.SimpleNamespace(device_kind="TPU v5")


def test_a_kind_that_is_not_in_the_table_has_none():
    assert compiler_options(jax.devices()[0]) == {}


def test_what_the_environment_says_stands(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert compiler_options(V5P) == {"xla_tpu_scoped_vmem_limit_kib": "32768"}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    assert compiler_options(V5P) == {}
