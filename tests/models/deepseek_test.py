"""DeepSeek-V3's published sizes, where a fresh one starts, and what is its own: biases that move,
tokens further ahead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models import Compute, deepseek
from bigmodel_jax.models.deepseek import PRESETS, DeepseekConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.pretrained.deepseek import DEEPSEEK_V3

TINY = DeepseekConfig.tiny()
WITH_MODULES = dataclasses.replace(TINY, num_mtp_layers=2)


def activated(cfg: DeepseekConfig) -> int:
    """Counts the parameters that one token uses: its routed experts, and one row of the
    embedding."""
    spec = params.paths(cfg.make().spec)
    routed = sum(p.size for path, p in spec.items() if "/experts/" in path)
    rest = params.count(cfg.make().spec) - routed - spec["embed/table"].size
    return rest + routed * cfg.experts_per_token // cfg.num_experts


def test_presets_have_the_published_number_of_parameters():
    """DeepSeek-V3 (arXiv:2412.19437) has 671B parameters, of which a token uses 37B; its prediction
    module has 11.5B without the merging matrix. Moonlight (arXiv:2502.16982) has 15.29B and 2.24B
    without embedding and head."""
    cfg = PRESETS["deepseek-v3"]
    assert params.count(cfg.make().spec) == 671_026_419_200
    assert round(activated(cfg) / 1e9) == 37
    module = params.paths(dataclasses.replace(cfg, num_mtp_layers=1).make().spec["mtp"])
    assert round(sum(p.size for path, p in module.items() if path != "merge/kernel") / 1e9, 1) == 11.5
    cfg = PRESETS["moonlight-16b-a3b"]
    ends = cfg.vocab_size * cfg.embed_dim
    assert round((params.count(cfg.make().spec) - 2 * ends) / 1e9, 2) == 15.29
    assert round((activated(cfg) - ends) / 1e9, 2) == 2.24


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_out_and_in(name):
    assert DEEPSEEK_V3.from_hf(DEEPSEEK_V3.to_hf(PRESETS[name])) == PRESETS[name]
    PRESETS[name].validate(ParallelConfig())


@pytest.mark.exhaustive
def test_initial_values():
    """Every matrix has the paper's std of 0.006 (section 4.2). Biases start at 0 and norms at 1, as
    in transformers' _init_weights."""
    assert PRESETS["deepseek-v3"].init_std == 0.006
    cfg = dataclasses.replace(WITH_MODULES, embed_dim=128, expert_dim=64, init_std=0.006)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(x, 1.0, path)
        elif path.endswith("bias"):
            np.testing.assert_array_equal(x, 0.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.006 / x.size**0.5, path
            assert abs(x.std() / 0.006 - 1) < 4 / (2 * x.size) ** 0.5, path


def batch_of(tokens, **more):
    tokens = jnp.asarray(tokens)
    weights = jnp.ones(tokens[:, 1:].shape)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights, **more}


def fresh(cfg, seed=0):
    model = cfg.make()
    return model, params.init(model.spec, jax.random.key(seed))


@pytest.mark.exhaustive
def test_a_training_step_moves_the_biases_towards_an_even_load():
    model, p = fresh(TINY)
    tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, 64)
    loads = model.apply(p, batch_of(tokens), train=True).updates
    assert set(loads) == {"layers/router/choice_bias"}
    assert loads["layers/router/choice_bias"].sum() == 2 * 4 * 16 * TINY.experts_per_token, "each token of both layers"
    bias = model.advance(params.partition(p, model.spec)[1], loads)["layers"]["router"]["choice_bias"]
    assert bias.shape == (2, 8)
    np.testing.assert_allclose(np.abs(bias[bias != 0]), TINY.bias_update_rate)
    assert (bias > 0).any(1).all()
    assert (bias < 0).any(1).all()
    assert model.apply(p, batch_of(tokens)).updates == {}


def test_the_balance_loss_is_small_and_has_a_gradient():
    model, p = fresh(TINY)
    batch = batch_of(jax.random.randint(jax.random.key(1), (4, 17), 0, 64))

    def loss(kernel):
        router = p["layers"]["router"] | {"kernel": kernel}
        return model.apply(p | {"layers": p["layers"] | {"router": router}}, batch, train=True).losses["balance_loss"]

    value, gradient = jax.value_and_grad(loss)(p["layers"]["router"]["kernel"])
    layers = TINY.num_layers - TINY.num_dense_layers
    np.testing.assert_allclose(value, TINY.balance_loss * layers, rtol=0.3)  # 1 a layer when even
    assert gradient.any()


def further_logits(cfg, model, p, tokens, **where):
    """(M, B, T, V): the modules' logits alone."""
    q_where, _, _ = deepseek.decoder.where({"tokens": tokens, **where}, None)
    angles = deepseek.rope_angles(cfg, q_where.positions)
    hidden = jax.random.normal(jax.random.key(3), (cfg.vocab_size, cfg.embed_dim))[tokens]
    return deepseek.further_head(cfg, p, tokens, hidden, q_where, angles)[0].logits()


def test_a_module_sees_its_token_ahead_and_none_after():
    model, p = fresh(WITH_MODULES)
    tokens = jnp.arange(8)[None]
    before = further_logits(WITH_MODULES, model, p, tokens)
    for changed in (3, 6):
        after = further_logits(WITH_MODULES, model, p, tokens.at[0, changed].set(60))
        differs = np.abs(after - before).max((1, 3)) > 0
        for k in (1, 2):
            assert not differs[k - 1, : changed - k].any()
            assert differs[k - 1, changed - k : 8 - k].all()


def test_modules_do_not_see_other_documents():
    """A place in packed documents has the logits that its document gives alone, wherever a token
    lies ahead."""
    model, p = fresh(WITH_MODULES)
    first, second = np.arange(5) + 3, np.arange(7) + 20
    together = further_logits(
        WITH_MODULES,
        model,
        p,
        jnp.concatenate([first, second, jnp.zeros(2, jnp.int32)])[None],
        positions=jnp.concatenate([jnp.arange(5), jnp.arange(7), jnp.zeros(2, jnp.int32)])[None],
        segment_ids=jnp.array([[1] * 5 + [2] * 7 + [0] * 2]),
    )
    for start, document in ((0, first), (5, second)):
        alone = further_logits(WITH_MODULES, model, p, jnp.asarray(document)[None])
        for k in (1, 2):
            n = len(document) - k
            np.testing.assert_allclose(together[k - 1, 0, start : start + n], alone[k - 1, 0, :n], atol=1e-5)


def test_only_targets_of_the_same_document_count():
    model, p = fresh(WITH_MODULES)
    tokens = jax.random.randint(jax.random.key(1), (1, 13), 0, 64)
    segments = jnp.array([[1] * 5 + [2] * 7])
    weights = jnp.ones((1, 12)).at[0, 4].set(0.0)  # the next token is another document's
    packed = batch_of(tokens, segment_ids=segments, positions=jnp.concatenate([jnp.arange(5), jnp.arange(7)])[None])
    packed["weights"] = weights

    def summed(batch):
        return model.apply(p, batch, train=True).losses["mtp_loss"] * batch["weights"].sum()

    alone = []
    for start, stop, targets in ((0, 5, 4), (5, 12, 7)):
        part = {name: packed[name][:, start:stop] for name in ("tokens", "targets", "weights")}
        assert part["weights"].sum() == targets
        alone.append(summed(part))
    np.testing.assert_allclose(summed(packed), sum(alone), rtol=1e-5)


@pytest.mark.exhaustive
def test_training_with_modules_lowers_their_loss_and_every_parameter_learns():
    cfg = dataclasses.replace(WITH_MODULES, compute=Compute(remat="full"))
    model, p = fresh(cfg)
    batch = batch_of(jax.random.randint(jax.random.key(1), (4, 17), 0, 64))
    trainable, frozen = params.partition(p, model.spec)

    def step(carry, _):
        trainable, frozen = carry

        def loss(t):
            out = NextToken().loss(model, params.merge(t, frozen), batch, rng=None, train=True)
            return out.mean.total / out.mean.count, out

        gradients, out = jax.grad(loss, has_aux=True)(trainable)
        trainable = jax.tree.map(lambda w, g: w - 0.5 * g, trainable, gradients)
        mtp_loss = out.metrics["mtp_loss"]
        found = mtp_loss.total / mtp_loss.count, jax.tree.map(lambda g: jnp.any(g != 0), gradients)
        return (trainable, model.advance(frozen, out.updates)), found

    (_, frozen), (losses, reached) = jax.jit(lambda carry: jax.lax.scan(step, carry, length=12))((trainable, frozen))
    assert set(params.paths(frozen)) == {"layers/router/choice_bias", "mtp/router/choice_bias"}
    assert losses[-1] < losses[0] - 0.02
    assert not [path for path, x in params.paths(reached).items() if not x.any()]


def test_modules_are_left_out_of_evaluation_and_generation():
    model, p = fresh(WITH_MODULES)
    tokens = jnp.arange(8)[None]
    alone = {name: x for name, x in p.items() if name != "mtp"}
    out = model.apply(p, {"tokens": tokens})
    np.testing.assert_array_equal(out.value, TINY.make().apply(alone, {"tokens": tokens}).value)
    assert out.losses == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_dense_layers": 4}, "model.num_dense_layers = 4; it must be at most model.num_layers = 3"),
        ({"num_groups": 3}, "model.num_groups = 3; allowed: divisors of num_experts = 8"),
        ({"expert_buffer": -1.0}, "model.expert_buffer = -1.0; it must be 0 or more"),
        ({"experts_per_token": 5}, "model.experts_per_token = 5; allowed: 1 to 4"),
        ({"expert_dim": 15}, "model.expert_dim = 15 is not divisible by parallel.tensor = 2"),
        ({"num_experts": 12}, "model.num_experts = 12 is not divisible by parallel.expert = 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields).validate(ParallelConfig(tensor=2, expert=8))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dense", [0, 3])
def test_all_layers_may_be_of_one_kind(dense):
    cfg = dataclasses.replace(TINY, num_dense_layers=dense)
    model, p = fresh(cfg)
    tokens = jnp.arange(8)[None]
    cached = model.apply(p, {"tokens": tokens}, cache=params.empty(model.make_cache(1, 8, jnp.float32))).value
    np.testing.assert_allclose(cached, model.apply(p, {"tokens": tokens}).value, atol=1e-5)
    assert len(model.apply(p, batch_of(jnp.arange(9)[None]), train=True).updates) == (0 if dense else 1)


def test_what_the_family_does_not_have_is_refused():
    hf = DEEPSEEK_V3.to_hf(TINY)
    with pytest.raises(ValueError, match="scoring_func = 'softmax' is not supported"):
        DEEPSEEK_V3.from_hf(hf | {"scoring_func": "softmax"})
    with pytest.raises(ValueError, match="quant_method = 'gptq' is not supported"):
        DEEPSEEK_V3.from_hf(hf | {"quantization_config": {"quant_method": "gptq"}})


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "expert": 2, "seq": 2}], ids=str)
def test_training_with_modules_on_eight_devices_equals_one(layout):
    model, p = fresh(WITH_MODULES)
    tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 64)
    batch = batch_of(tokens, segment_ids=jnp.tile(jnp.array([1] * 6 + [2] * 8 + [0] * 2), (8, 1)))
    trainable, frozen = params.partition(p, model.spec)

    def step(trainable, frozen, batch):
        def loss(t):
            out = NextToken().loss(model, params.merge(t, frozen), batch, rng=None, train=True)
            return out.mean.total / out.mean.count, out.updates

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    one = jax.jit(step)(trainable, frozen, batch)
    mesh = sharding.make_mesh(ParallelConfig(**layout))
    placed = params.partition(sharding.shardings(model.spec, mesh, Rules()), model.spec)
    batch = {k: jax.device_put(v, sharding.batch_sharding(mesh, Rules(), ("seq",))) for k, v in batch.items()}
    with sharding.use(mesh, Rules()):
        eight = jax.jit(step)(*jax.device_put((trainable, frozen), placed), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), eight, one)
