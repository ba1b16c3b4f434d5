"""Adapters on every layout train as on one device, and lie along the axes of the weight that they
change."""

import dataclasses
import functools
import itertools
import re

import jax
import numpy as np
import pytest
from grids import few
from jax.sharding import PartitionSpec as P

import layout_runs
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import Compute, LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.training.state import abstract_constants, abstract_state, init_constants, init_state
from bigmodel_jax.training.step import make_train_step
from configs import llama3_70b_lora

LAYOUTS = {
    "data": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "fsdp_tp": ParallelConfig(data=2, fsdp=2, tensor=2),
    "pmap": ParallelConfig(data=8, strategy="pmap"),
    "gpipe": ParallelConfig(data=2, stage=2, tensor=2, pipeline_microbatches=4),
    "1f1b": ParallelConfig(data=2, stage=2, tensor=2, pipeline_microbatches=4, pipeline_schedule="1f1b"),
}
LORAS = {
    "lora": Lora(targets=".*", rank=4, alpha=8.0),
    "dora": Lora(targets="layers/.*", rank=4, alpha=8.0, dora=True, trained="norm/scale", new_tokens_from=60),
}
STEPS = 3


def config_of(lora: str, parallel: ParallelConfig, microbatches: int = 1) -> Config:
    config = layout_runs.config_of("llama", parallel, num_layers=4, init_std=0.1)
    train = dataclasses.replace(config.train, microbatches=microbatches)
    return dataclasses.replace(config, adapters=LORAS[lora], train=train)


def run(config: Config, num_devices: int) -> tuple[dict, list[float]]:
    """(what is trained, by path, on the host; losses)."""
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:num_devices])
    state, fixed, step = init_state(config, mesh), init_constants(config, mesh), make_train_step(config, mesh)
    losses = []
    for i in range(STEPS):
        batch = layout_runs.place(layout_runs.text_batch(i), mesh, config.parallel.rules)
        state, sums = step(state, batch, fixed)
        losses.append(float(sums["loss"].compute()))
    return params.paths(sharding.to_host(state.params)), losses


@functools.cache
def on_one(lora: str) -> tuple[dict, list[float]]:
    return run(config_of(lora, ParallelConfig()), 1)


def check(lora: str, parallel: ParallelConfig, num_devices: int = 8, microbatches: int = 1) -> None:
    (want, losses), (got, found) = on_one(lora), run(config_of(lora, parallel, microbatches), num_devices)
    assert all(np.abs(x).max() > 1e-3 for path, x in want.items() if path.endswith("/b"))
    np.testing.assert_allclose(found, losses, atol=2e-5)
    assert got.keys() == want.keys()
    for path, x in want.items():
        np.testing.assert_allclose(got[path], x, atol=2e-5, err_msg=path)


@pytest.mark.slow
# Two axes at once; optim/groups_test.py has steps beside frozen parameters under 1F1B.
@pytest.mark.parametrize(("lora", "layout"), few(itertools.product(LORAS, LAYOUTS), ("lora", "fsdp_tp")))
def test_every_layout_equals_one_device(lora, layout):
    check(lora, LAYOUTS[layout])


@pytest.mark.slow
def test_pieces_of_a_batch_add_up():
    check("lora", ParallelConfig(), 1, microbatches=4)


def test_a_lies_along_the_inputs_and_b_along_the_outputs():
    config = config_of("lora", LAYOUTS["fsdp_tp"])
    placed = params.paths(
        sharding.shardings(config.make_model().spec, sharding.make_mesh(config.parallel), config.parallel.rules)
    )
    found = {name: placed[f"adapters/default/layers/attn/{name}"].spec for name in ("q/a", "q/b", "o/a", "o/b")}
    assert found == {
        "q/a": P("stage", "fsdp", None),
        "q/b": P("stage", None, ("tensor", "fsdp"), None),
        "o/a": P("stage", ("tensor", "fsdp"), None, None),
        "o/b": P("stage", None, "fsdp"),
    }


def test_no_half_of_an_adapter_lies_whole_where_the_weight_is_cut():
    """Each of 64 devices has a 64th of every adapter of Llama 3 70B. Keys and values have 8 heads
    and are cut inside them."""
    config = llama3_70b_lora.get_config()
    mesh = jax.sharding.AbstractMesh((1, 1, 64, 1, 1, 1), sharding.AXES)
    spec = config.make_model().spec
    for path, where in params.paths(sharding.shardings(spec["adapters"], mesh, config.parallel.rules)).items():
        shape = params.paths(spec["adapters"])[path].shape
        assert np.prod(where.shard_shape(shape)) * 64 == np.prod(shape), path


def products(config: Config) -> set[str]:
    """Shapes of the results of the compiled step's products that have the 256 tokens, dimensions in
    order of size."""
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    args = abstract_state(config, mesh), layout_runs.text_batch(0), abstract_constants(config, mesh)
    text = make_train_step(config, mesh).lower(*args).compile().as_text()
    shapes = {name: size.split(",") for name, size in re.findall(r"(%[\w.-]+) = \w+\[([\d,]*)\]", text)}
    dots = re.findall(r"(%[\w.-]+) = [^\n]* dot\((?:\S+ )?(%[\w.-]+), (?:\S+ )?(%[\w.-]+)\)", text)
    assert dots
    found = [shapes[dot] for dot, *operands in dots if any(tokens(shapes[name]) for name in operands)]
    return {"x".join(sorted((n for n in shape if n != "1"), key=int)) for shape in found}


def tokens(shape: list[str]) -> bool:
    return "256" in shape or shape[:2] == ["16", "16"]


@pytest.mark.slow
def test_a_step_computes_no_gradient_of_a_frozen_weight():
    """Such a gradient would be a product of the weight's shape. The 256 tokens are no dimension of
    a weight here."""
    model = LlamaConfig(
        vocab_size=64,
        num_layers=2,
        embed_dim=40,
        num_heads=5,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=96,
        max_seq_len=32,
        compute=Compute(unroll=True),
    )
    full = dataclasses.replace(config_of("lora", ParallelConfig()), model=model)
    weights = {"40x40", "8x40", "40x96", "40x64"}  # q and o, k and v, the three of the MLP, the head
    plain = dataclasses.replace(full, adapters=type(full).__dataclass_fields__["adapters"].default)
    assert weights <= products(plain)
    adapted = products(full)
    assert not weights & adapted, weights & adapted
    assert {"4x40", "4x96"} <= adapted
