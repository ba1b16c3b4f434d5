"""Sizes that `tensor` does not divide: padded tables, repeated kv heads, and rules that leave a
dimension whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, SampleConfig, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.data import DataConfig
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import Compute, DeepseekConfig, Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.objectives import NextToken

V, ROWS, LENGTH = 61, 4, 16
TABLES = ("embed/table", "head/table")


def batch() -> dict:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (ROWS, LENGTH + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    whole = {"positions": positions, "segment_ids": np.ones((ROWS, LENGTH), np.int32)}
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((ROWS, LENGTH), np.float32)} | whole


def loss_and_gradients(model, parallel, logits="auto"):
    """(loss, {path: gradient}) of the initial values on a mesh."""
    count = int(np.prod([n for n in parallel.sizes() if n > 0]))
    mesh, made, objective = sharding.make_mesh(parallel, jax.devices()[:count]), model.make(), NextToken(logits=logits)

    def loss(tree, rows):
        with sharding.use(mesh, parallel.rules, parallel):
            mean = objective.loss(made, tree, rows, rng=jax.random.key(0), train=False).mean
            return mean.total / mean.count

    placed = sharding.shardings(made.spec, mesh, parallel.rules)
    tree = jax.device_put(params.init(unpadded(model).make().spec, jax.random.key(1)), jax.devices()[0])
    shapes = params.paths(made.spec)
    flat = {
        path: np.pad(x, [(0, n - m) for n, m in zip(shapes[path].shape, x.shape, strict=True)])
        for path, x in params.paths(tree).items()
    }
    value, grads = jax.jit(jax.value_and_grad(loss))(jax.device_put(params.from_paths(flat), placed), batch())
    return float(value), jax.tree.map(np.asarray, params.paths(grads))


def equal(got, want):
    value, grads = got
    np.testing.assert_allclose(value, want[0], rtol=2e-6)
    for path, expected in want[1].items():
        whole = tuple(map(slice, expected.shape))
        np.testing.assert_allclose(grads[path][whole], expected, rtol=1e-4, atol=2e-6, err_msg=path)
        if path in TABLES:
            assert not grads[path][len(expected) :].any(), "a row that is no token has no gradient"


@functools.cache
def of_one_device(model):
    return loss_and_gradients(model, ONE, "whole")


def pad(model, multiple):
    return dataclasses.replace(model, pad_vocab=multiple)


ONE = ParallelConfig(data=1)
TP4, TP4_SEQ = ParallelConfig(data=2, tensor=4), ParallelConfig(data=1, seq=2, tensor=4)
NARROW = dataclasses.replace(LlamaConfig.tiny(), vocab_size=V, num_layers=1)


# ---- model.pad_vocab ----
@pytest.mark.few("4-blocks-parallel2")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("multiple", "logits", "parallel"),
    [
        (4, "whole", TP4),
        (128, "whole", TP4),
        (4, "blocks", ParallelConfig(data=1, fsdp=2, tensor=4)),
        (128, "blocks", TP4),
    ],
)
def test_padded_tables_change_neither_loss_nor_gradients(multiple, logits, parallel):
    """61 rows are padded to 64 and to 128. With 128 rows, two of four devices hold nothing but
    padding."""
    equal(loss_and_gradients(pad(NARROW, multiple), parallel, logits), of_one_device(NARROW))


@pytest.mark.few("Gemma2Config")
@pytest.mark.slow
@pytest.mark.parametrize("family", [GPT2Config, Gemma2Config, MixtralConfig, DeepseekConfig])
def test_gradients_of_every_decoder_family(family):
    model = dataclasses.replace(family.tiny(), vocab_size=V)
    equal(loss_and_gradients(pad(model, 16), ONE), of_one_device(model))


@pytest.mark.parametrize("family", [GPT2Config, Gemma2Config, MixtralConfig, DeepseekConfig])
def test_every_decoder_family_pads(family):
    model = dataclasses.replace(family.tiny(), vocab_size=V)
    tables = [x.shape for path, x in params.paths(pad(model, 16).make().spec).items() if path in TABLES]
    assert {shape[0] for shape in tables} == {64}
    value = jax.eval_shape(pad(model, 16).make().apply, params.abstract(pad(model, 16).make().spec), batch()).value
    assert value.shape == (ROWS, LENGTH, V)


def test_padding_moves_no_initial_value_and_is_zero():
    plain, padded = (params.init(m.make().spec, jax.random.key(0)) for m in (NARROW, pad(NARROW, 8)))
    for path, x in params.paths(plain).items():
        other = params.paths(padded)[path]
        assert jnp.array_equal(other[: len(x)], x), path
        assert not other[len(x) :].any()


@pytest.mark.slow
def test_generation_is_that_of_the_vocabulary():
    """The test compares logits and drawn tokens. The weights are random, and the temperature gives
    each row of the table a chance."""
    sample = SampleConfig(max_tokens=12, temperature=5.0)
    texts = []
    for model in (NARROW, pad(NARROW, 128)):
        made = model.make()
        tree = params.init(made.spec, jax.random.key(0))
        assert made.apply(tree, batch()).value.shape[-1] == V
        texts.append(generate(made, tree, [[1, 2, 3]] * 2, sample, stop=(), seed=3))
    assert texts[0] == texts[1]


# ---- kv heads ----
@pytest.mark.slow
@pytest.mark.few("1-chunked-parallel6")
@pytest.mark.parametrize(
    ("kv_heads", "attention", "parallel"),
    [
        (2, "plain", TP4),
        (1, "chunked", TP4),
        (2, "chunked", TP4_SEQ),
        (2, "chunked", TP4),
        (1, "plain", TP4),
        (1, "chunked", TP4_SEQ),
        pytest.param(1, "chunked", dataclasses.replace(TP4_SEQ, context="ulysses", tensor=2), marks=pytest.mark.slow),
    ],
)
def test_fewer_kv_heads_than_devices_lie_whole_on_each(kv_heads, attention, parallel):
    sizes = {"num_layers": 1, "num_heads": 8, "num_kv_heads": kv_heads, "compute": Compute(attention=attention)}
    model = dataclasses.replace(LlamaConfig.tiny(), **sizes)
    validate(Config(model, NextToken(), DataConfig(), parallel=parallel, train=TrainConfig(batch_size=8)))
    equal(
        loss_and_gradients(model, parallel),
        of_one_device(dataclasses.replace(model, compute=Compute(attention="plain"))),
    )


def test_a_device_computes_its_own_query_heads_alone():
    """There are 4 query heads over 4 devices, and 2 kv heads. The products of attention are cut to
    one head."""
    model, mesh = dataclasses.replace(LlamaConfig.tiny(), compute=Compute(attention="chunked")), sharding.make_mesh(TP4)

    def apply(tree, rows):
        with sharding.use(mesh, TP4.rules, TP4):
            return model.make().apply(tree, rows).value

    tree = params.abstract(model.make().spec, sharding.shardings(model.make().spec, mesh, TP4.rules))
    assert params.paths(tree)["layers/attn/k"].sharding.is_fully_replicated
    text = str(jax.make_jaxpr(apply)(tree, batch()))
    assert f"f32[{ROWS // 2},{LENGTH},1,8]" in text, "a device's queries, (rows, tokens, heads, head_dim)"


# ---- rules and messages ----
def check(model, parallel):
    validate(Config(model, NextToken(), DataConfig(), parallel=parallel, train=TrainConfig(batch_size=8)), 8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": V}, "model.vocab_size = 61 is not divisible by parallel.tensor = 4: --model.pad_vocab 4 pads"),
        ({"vocab_size": V}, "or --parallel.rules.vocab None leaves it whole on every device"),
        ({"vocab_size": V, "pad_vocab": 3}, "padded to multiples of model.pad_vocab = 3 = 63 is not divisible"),
        ({"pad_vocab": 0}, "model.pad_vocab = 0; it must be 1 or more"),
        ({"mlp_dim": 6}, "model.mlp_dim = 6 is not divisible by parallel.tensor = 4: --parallel.rules.mlp None"),
        ({"num_heads": 6, "num_kv_heads": 3}, "model.num_heads = 6 is not divisible by parallel.tensor = 4"),
    ],
)
@pytest.mark.parametrize("parallel", [TP4, ParallelConfig(data=2, tensor=-1)])
def test_the_line_names_the_ways_out(change, says, parallel):
    with pytest.raises(ValueError) as error:
        check(dataclasses.replace(LlamaConfig.tiny(), **change), parallel)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"vocab_size": V}, Rules(vocab=None)),
        ({"mlp_dim": 6}, Rules(mlp=None)),
        ({"num_heads": 6, "num_kv_heads": 3}, Rules(heads=None)),
    ],
)
def test_a_rule_of_none_is_honoured(change, rules):
    model, parallel = dataclasses.replace(LlamaConfig.tiny(), **change), dataclasses.replace(TP4, rules=rules)
    if "vocab_size" not in change:
        model = dataclasses.replace(model, vocab_size=64)
    check(model, parallel)
    if "vocab_size" in change:
        equal(loss_and_gradients(model, parallel), of_one_device(model))
