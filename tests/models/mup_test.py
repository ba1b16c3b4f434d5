"""μP: what each parameter's width is, that nothing changes at the base, and activations that stay
over widths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, TrainConfig, override
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Width
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import BertConfig, GemmaConfig, GPT2Config, LlamaConfig, MLPConfig, T5Config, ViTConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.mup import MupConfig, check_published
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.optim.widths import scaled
from bigmodel_jax.scaling.coordinates import growth, of_widths, sizes_of
from bigmodel_jax.training.state import init_state

TINY = LlamaConfig.tiny()
MESH = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
BASE = ("embed_dim=32", "num_heads=4", "num_kv_heads=2", "mlp_dim=64")


def config(model=TINY, base=BASE, objective=None, **optim) -> Config:
    optim = OptimConfig(**({"lr": 1e-2, "schedule": "constant", "clip": 0.0} | optim))
    parts = {"optim": optim, "mup": MupConfig(tuple(base)), "parallel": ParallelConfig(data=1)}
    return Config(model, objective or NextToken(), DataConfig(), train=TrainConfig(steps=10, batch_size=8), **parts)


def wide(times: int = 2, **changes) -> LlamaConfig:
    return dataclasses.replace(of_widths(config(), times), **changes)


def widths(cfg: Config) -> dict[str, Width]:
    return {path: p.width for path, p in params.paths(cfg.make_model().spec).items()}


# ----------------------------------------------------------------------------------- which is which


def test_matrices_vectors_and_heads_are_told_by_their_axes():
    found = widths(config(wide(4)))
    assert found["embed/table"] == Width(1, 1 / 4, 1), "a vector for each token"
    assert found["layers/attn/q"] == found["layers/attn/o"] == found["layers/mlp/down"] == Width(4, 1 / 4, 1)
    assert found["norm/scale"] == Width(1, 1 / 4, 1)
    assert found["head/table"] == Width(1, 1 / 4, 1 / 4)


def test_depth_multiplies_what_ends_a_branch_and_its_bias():
    model = dataclasses.replace(GPT2Config.tiny(), num_layers=8)
    found = widths(config(model, ("num_layers=2",)))
    branch = {path for path, width in found.items() if width.multiplier == 1 / 4}
    assert branch == {f"layers/{name}" for name in ("attn/o", "attn/o_bias", "mlp/down/kernel", "mlp/down/bias")}
    assert {path for path, width in found.items() if width.gradient == 1 / 4} == {p for p in found if "layers" in p}


def test_queries_hold_what_attention_is_divided_by_less():
    base = ("head_dim=8",)
    found = widths(config(dataclasses.replace(TINY, head_dim=32), base))
    assert found["layers/attn/q"].multiplier == 0.5
    assert found["layers/attn/k"].multiplier == found["layers/attn/v"].multiplier == 1
    normed = widths(config(dataclasses.replace(TINY, head_dim=32, qk_norm=True), base))
    assert normed["layers/attn/q"].multiplier == 1
    assert normed["layers/attn/q_norm/scale"].multiplier == 0.5
    assert normed["layers/attn/k_norm/scale"].multiplier == 1


def test_a_classifiers_head_and_first_layer():
    found = widths(
        config(MLPConfig(image_shape=(8, 8, 1), hidden_dims=(64, 64)), ("hidden_dims=16,16",), Classification())
    )
    assert found["hidden0/kernel"] == Width(1, 1 / 4, 1)
    assert found["hidden1/kernel"] == Width(4, 1 / 4, 1)
    assert found["head/kernel"] == Width(1, 1 / 4, 1 / 4)
    assert found["head/bias"] == Width()
    vit = dataclasses.replace(ViTConfig.tiny(), embed_dim=64, mlp_dim=128)
    found = widths(config(vit, ("embed_dim=32", "mlp_dim=64"), Classification()))
    assert found["patches/kernel"] == found["positions"] == found["cls"] == Width(1, 1 / 2, 1)


# --------------------------------------------------------------------------------- values and rates


def test_at_the_base_nothing_changes():
    with_base, without = config(), config(base=())
    ours, theirs = (params.paths(c.make_model().spec) for c in (with_base, without))
    assert ours == theirs
    states = [jax.tree.leaves(init_state(c, MESH)) for c in (with_base, without)]
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("init", ["default", "he_normal", "orthogonal", "normal"])
def test_initial_values_have_the_spread_of_the_base_less_the_root_of_the_width(init):
    def spreads(dims, base=()):
        model = MLPConfig(image_shape=(8, 8, 1), hidden_dims=dims, init=init)
        spec = config(model, base, Classification()).make_model().spec
        tree = params.paths(params.init(spec, jax.random.key(0)))
        return {name: float(jnp.std(tree[f"{name}/kernel"])) for name in ("hidden0", "hidden1", "head")}

    base, wider = spreads((48, 48)), spreads((192, 192), ("hidden_dims=48,48",))
    assert wider["hidden0"] == pytest.approx(base["hidden0"], rel=0.05)
    assert wider["hidden1"] == pytest.approx(base["hidden1"] / 2, rel=0.05)
    assert wider["head"] == pytest.approx(base["head"] / 4, rel=0.15)


def test_rates_by_the_kind_of_update():
    hidden, head = Width(4, 1 / 4, 1), Width(1, 1 / 4, 1 / 4)
    adam = OptimConfig(lr=1.0, weight_decay=0.1, eps=1e-8)
    assert (scaled(adam, hidden).lr, scaled(adam, hidden).weight_decay) == (0.25, 0.4)
    assert scaled(adam, hidden).eps == 2.5e-9
    assert (scaled(adam, head).lr, scaled(adam, head).eps) == (0.25, 1e-8)
    sgd = OptimConfig(name="sgd", lr=1.0)
    assert [scaled(sgd, w).lr for w in (hidden, head, Width(1, 1 / 4, 1))] == [1.0, 0.25, 4.0]


def test_a_tied_head_is_multiplied():
    model = wide(2, tied_embeddings=True)
    ours, plain = config(model).make_model(), config(model, ()).make_model()
    tree = params.init(plain.spec, jax.random.key(0))
    batch = {"tokens": jnp.arange(8)[None]}
    a, b = ours.apply(tree, batch), plain.apply(tree, batch)
    np.testing.assert_allclose(a.value, b.value / 2, rtol=1e-5)
    np.testing.assert_allclose(a.head.logits(), a.value, rtol=1e-6)


def test_a_run_with_a_factor_on_its_logits_is_not_exported():
    for tied in (True, False):
        cfg = config(wide(2, tied_embeddings=tied))
        if tied:
            with pytest.raises(ValueError, match=r"embed/table is also the head"):
                check_published(cfg.mup, cfg.make_model())
        else:
            check_published(cfg.mup, cfg.make_model())


# -------------------------------------------------------------------------------------- coordinates


def batches(num: int = 3) -> list[dict]:
    tokens = np.random.default_rng(0).integers(0, 64, (8, 17), dtype=np.int32)
    return [{"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}] * num


FLAT = 0.25  # of a power of the width: between 0, where activations stay, and 1/2, the least with which they grow


def growths(models: dict[int, LlamaConfig], base, **optim) -> tuple[dict[str, float], dict[str, float]]:
    """Exponents of the activations' growth with the size after three steps, under μP and without.
    The first model is the base."""
    first, *rest = models
    of_base = sizes_of(config(models[first], (), **optim), batches(), MESH)
    found = []
    for form in (base, ()):
        of_all = {first: of_base} | {n: sizes_of(config(models[n], form, **optim), batches(), MESH) for n in rest}
        found.append({seen: growth(of_all, seen) for seen in ("residual", "attention")})
    return tuple(found)


@pytest.mark.slow
def test_activations_stay_over_widths_under_mup_and_grow_without():
    """This is the coordinate check, on widths 32 and 128."""
    flat, grown = growths({n: wide(n) for n in (1, 4)}, BASE)
    assert all(abs(power) < FLAT for power in flat.values()), flat
    assert all(power > 1 - FLAT for power in grown.values()), grown


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "lr", "tied"), [("sgd", 0.5, True), ("sgd", 0.5, False), ("adamw", 1e-2, True), ("lion", 3e-3, False)]
)
def test_other_rules_and_tied_heads_stay(name, lr, tied):
    flat, grown = growths({n: wide(n, tied_embeddings=tied) for n in (1, 4, 16)}, BASE, name=name, lr=lr)
    assert all(abs(power) < FLAT for power in flat.values()), flat
    assert all(power > 0.5 for power in grown.values()), grown


@pytest.mark.exhaustive
def test_activations_stay_over_depths_in_the_depth_form():
    """The depths are 2 and 16. Without the depth form, the residual grows with the number of layers
    that add to it."""
    flat, grown = growths({n: dataclasses.replace(TINY, num_layers=2 * n) for n in (1, 8)}, ("num_layers=2",))
    assert abs(flat["residual"]) < FLAT, flat
    assert grown["residual"] > FLAT, grown


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("model", "base", "optim", "text"),
    [
        (TINY, ("embed_dims=16",), {}, r"names no size of the model \(perhaps you meant 'embed_dim'\)"),
        (TINY, ("embed_dim=",), {}, r"it must be of the form embed_dim=32"),
        (TINY, ("embed_dim=0",), {}, r"it must be of the form embed_dim=32"),
        (TINY, ("embed_dim=16",), {"name": "muon"}, r"optim.name = 'muon' with mup.base: no rule"),
        (GemmaConfig.tiny(), ("mlp_dim=16",), {}, r"multiplies its embeddings"),
        (T5Config.tiny(), ("mlp_dim=16",), {}, r"multiplies its logits"),
        (BertConfig.tiny(), ("num_layers=1",), {}, r"norms after its residuals"),
    ],
)
def test_what_cannot_be_is_one_line(model, base, optim, text):
    with pytest.raises(ValueError, match=text) as error:
        validate(config(model, base, **optim))
    assert "\n" not in str(error.value)


def test_adapters_have_no_base():
    with pytest.raises(ValueError, match="with adapters"):
        validate(dataclasses.replace(config(wide()), adapters=Lora(rank=2)))


def test_the_base_is_saved_and_is_an_option():
    cfg = config(wide())
    assert config_file.from_json(config_file.to_json(cfg)) == cfg
    assert override(cfg, ["--mup.base", "embed_dim=16", "mlp_dim=8"]).mup.base == ("embed_dim=16", "mlp_dim=8")
