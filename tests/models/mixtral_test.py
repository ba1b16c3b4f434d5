"""Mixtral's published sizes, where a fresh one starts, and what its experts are told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.mixtral import PRESETS, MixtralConfig
from bigmodel_jax.models.qwen_moe import PRESETS as QWEN_PRESETS
from bigmodel_jax.models.qwen_moe import Qwen3MoeConfig
from bigmodel_jax.pretrained.mixtral import MIXTRAL
from bigmodel_jax.pretrained.qwen_moe import QWEN3_MOE

# The totals of the published safetensors files.
PARAMETERS = {
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}
ALL = PRESETS | QWEN_PRESETS
every_config = pytest.mark.parametrize("config", [MixtralConfig, Qwen3MoeConfig])


@pytest.mark.parametrize("name", ALL)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(ALL[name].make().spec) == PARAMETERS[name]


@pytest.mark.parametrize("name", ALL)
def test_presets_survive_the_way_out_and_in(name):
    family = MIXTRAL if name in PRESETS else QWEN3_MOE
    assert family.from_hf(family.to_hf(ALL[name])) == ALL[name]


@pytest.mark.exhaustive
@every_config
def test_initial_values(config):
    """transformers' _init_weights draws every matrix, also of experts and router, from
    normal(0.02). Norms start at 1."""
    cfg = dataclasses.replace(config.tiny(), embed_dim=128, mlp_dim=128, head_dim=32, vocab_size=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(x, 1.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


TOKENS = np.arange(2 * 12).reshape(2, 12)


def drawn(cfg):
    model = cfg.make()
    return model, params.init(model.spec, jax.random.key(0))


def test_padding_changes_neither_losses_nor_logits_when_places_are_few():
    cfg = dataclasses.replace(MixtralConfig.tiny(), capacity_factor=0.5, init_std=0.3, router_z_loss=1e-3)
    model, p = drawn(cfg)
    segments = np.array([[0] * 4 + [1] * 8, [1] * 7 + [0] * 5])
    positions = np.maximum(segments.cumsum(-1) - 1, 0)
    batch = {"tokens": TOKENS, "segment_ids": segments, "positions": positions}
    other = batch | {"tokens": np.where(segments > 0, TOKENS, 63)}
    outs = [jax.jit(lambda b: model.apply(p, b, train=True))(b) for b in (batch, other)]
    (logits, losses), (other_logits, other_losses) = ((out.value, out.losses) for out in outs)
    assert set(losses) == {"load_balancing_loss", "router_z_loss"}
    jax.tree.map(np.testing.assert_array_equal, losses, other_losses)
    np.testing.assert_array_equal(logits[segments > 0], other_logits[segments > 0])


def test_tokens_are_dropped_in_training_alone():
    cfg = dataclasses.replace(MixtralConfig.tiny(), init_std=0.3)
    few = dataclasses.replace(cfg, capacity_factor=0.5)
    (model, p), (dropping, _) = drawn(cfg), drawn(few)
    batch = {"tokens": TOKENS}
    full = model.apply(p, batch).value
    np.testing.assert_array_equal(dropping.apply(p, batch).value, full)
    assert np.abs(dropping.apply(p, batch, train=True).value - full).max() > 1e-3
    many = dataclasses.replace(cfg, capacity_factor=2.0).make()  # 4 experts, 2 choices: a place for every token
    np.testing.assert_allclose(many.apply(p, batch, train=True).value, full, atol=1e-5)


@pytest.mark.parametrize("layout", [{"expert": 2, "tensor": 2, "data": 2}, {"expert": 4, "fsdp": 2, "data": 1}])
def test_experts_cut_over_devices_give_the_same_losses(layout):
    cfg = dataclasses.replace(MixtralConfig.tiny(), capacity_factor=1.0)
    model, p = drawn(cfg)
    rules, mesh = sharding.Rules(), sharding.make_mesh(ParallelConfig(**layout))
    batch = {"tokens": jnp.asarray(np.arange(8 * 12).reshape(8, 12) % 64)}

    def run(p):
        out = model.apply(p, batch, train=True)
        return out.value, out.losses

    one = jax.jit(run)(p)
    with sharding.use(mesh, rules):
        many = jax.jit(lambda p: run(p))(jax.device_put(p, sharding.shardings(model.spec, mesh, rules)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, atol=1e-4), many, one)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, r"model.num_experts = 0; it must be 1 or more"),
        ({"experts_per_token": 5}, r"model.experts_per_token = 5; it must be at most model.num_experts = 4"),
        ({"num_experts": 5}, r"model.num_experts = 5 is not divisible by parallel.expert = 2"),
        ({"capacity_factor": -1.0}, r"model.capacity_factor = -1.0; it must be 0 or more"),
        ({"expert_buffer": -1.0}, r"model.expert_buffer = -1.0; it must be 0 or more"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MixtralConfig.tiny(), **fields).validate(ParallelConfig(expert=2))


def test_what_the_families_do_not_have_is_refused():
    with pytest.raises(ValueError, match="a Mixtral has qkv_bias = False"):
        MIXTRAL.to_hf(dataclasses.replace(MixtralConfig.tiny(), qk_norm=True))
    with pytest.raises(ValueError, match="a Qwen3-MoE has window = 0"):
        QWEN3_MOE.to_hf(dataclasses.replace(Qwen3MoeConfig.tiny(), window=4))
    with pytest.raises(ValueError, match="decoder_sparse_step = 2 is not supported"):
        QWEN3_MOE.from_hf(QWEN3_MOE.to_hf(Qwen3MoeConfig.tiny()) | {"decoder_sparse_step": 2})
    with pytest.raises(ValueError, match=r"mlp_only_layers = \[1\] is not supported"):
        QWEN3_MOE.from_hf(QWEN3_MOE.to_hf(Qwen3MoeConfig.tiny()) | {"mlp_only_layers": [1]})


def test_a_file_that_leaves_the_balance_loss_unused_imports_none():
    hf = MIXTRAL.to_hf(MixtralConfig()) | {"output_router_logits": False}
    assert MIXTRAL.from_hf(hf) == dataclasses.replace(MixtralConfig(), load_balancing_loss=0.0)
