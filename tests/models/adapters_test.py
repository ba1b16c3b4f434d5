"""Adapters on the spec of any model: at zero they are the base bit for bit; random ones are the
merged weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples.one_file_model import NgramConfig

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import MODELS
from bigmodel_jax.models.adapted import matrix, merge
from bigmodel_jax.models.adapters import Lora, Ranked, Several
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.lora import only, without_adapters
from bigmodel_jax.optim import Group, OptimConfig

TOKENS = np.arange(1, 25, dtype=np.int32).reshape(2, 12)
SEGMENTS = np.array([[1] * 7 + [2] * 5, [1] * 10 + [0] * 2], np.int32)
# All that any tiny model reads.
BATCH = {
    "tokens": TOKENS,
    "segment_ids": SEGMENTS,
    "encoder_tokens": TOKENS[:, ::-1].copy(),
    "encoder_segment_ids": SEGMENTS,
    "features": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8),
}
FAST = {"llama"}
# How far from zero adapters are in tests of merged weights. With 0.02 and a scale of 16 they change
# the weights by three times what these are. Far larger ones make a model of which float32 does not
# know 1e-5 of a logit, merged or not.
SHAKES = (0.002, 0.02)


def batch_of(cfg) -> dict:
    batch = dict(BATCH)
    tower = getattr(cfg, "vision", cfg)
    if hasattr(tower, "image_shape"):
        batch["image"] = np.linspace(0, 1, 2 * np.prod(tower.image_shape), dtype=np.float32).reshape(
            2, *tower.image_shape
        )
        batch["timestep"], batch["label"] = np.array([3, 700], np.int32), np.array([0, 1], np.int32)
    if hasattr(cfg, "feature_shape"):
        batch["features"] = np.linspace(-1, 1, 2 * np.prod(cfg.feature_shape), dtype=np.float32).reshape(
            2, *cfg.feature_shape
        )
    if hasattr(cfg, "text_dim"):
        states = np.linspace(-1, 1, 2 * 12 * cfg.text_dim, dtype=np.float32)
        batch["text_states"] = states.reshape(2, 12, cfg.text_dim)
    if hasattr(cfg, "text") and not hasattr(cfg, "vision"):
        batch |= {"text_tokens": TOKENS, "text_segment_ids": SEGMENTS}
    if hasattr(cfg, "pooled_dim"):
        batch["text_pooled"] = np.linspace(-1, 1, 2 * cfg.pooled_dim, dtype=np.float32).reshape(2, cfg.pooled_dim)
    if hasattr(cfg, "connector"):
        tokens, prefix = TOKENS.copy(), np.zeros_like(TOKENS)
        tokens[:, 1 : 1 + cfg.image_tokens], prefix[:, :6] = cfg.image_token_id, 1
        batch |= {"tokens": tokens, "prefix": prefix}
    return batch | (sound_of(cfg) if hasattr(cfg, "num_mels") else {})


def sound_of(cfg) -> dict:
    """A spectrogram of each row, the second one shorter; a row of an encoder-decoder is one
    recording."""
    frames = 2 * getattr(cfg, "max_audio_len", 20)
    log_mel = np.sin(np.arange(2 * frames * cfg.num_mels, dtype=np.float32)).reshape(2, frames, cfg.num_mels)
    return {
        "log_mel": log_mel,
        "num_frames": np.array([frames, frames - 6], np.int32),
        "segment_ids": np.minimum(SEGMENTS, 1),
    }


def assert_near(got, want) -> None:
    """Compares to 1e-5 of the largest value."""
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def initial(model: Model) -> dict:
    init = model.init or functools.partial(params.init, model.spec)
    return jax.jit(init)(jax.random.key(0))


def shaken(tree: dict, by: float = 0.1) -> dict:
    """The tree with adapters that are nowhere zero."""
    flat, rng = params.paths(tree["adapters"]), np.random.default_rng(0)
    moved = {path: np.asarray(x) + by * rng.standard_normal(x.shape, np.float32) for path, x in flat.items()}
    return tree | {"adapters": params.from_paths(moved)}


def outputs(model: Model, batch: dict):
    run = jax.jit(lambda tree: model.apply(tree, batch).value)
    return lambda tree: jax.tree.leaves(run(tree))


def check_contract(base: Model, batch: dict, lora: Lora) -> dict:
    """Both contracts; returns the tree with random adapters."""
    model = lora.adapt(base)
    plain, run = outputs(base, batch), outputs(model, batch)
    tree = initial(model)
    want = plain(initial(base))
    for got in (run(tree), run(without_adapters(tree)), run(without_adapters(shaken(tree)))):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    whole = jax.jit(functools.partial(merge, model))
    for by in SHAKES:
        moved, merged = run(shaken(tree, by)), plain(whole(shaken(tree, by)))
        for a, b, c in zip(moved, merged, want, strict=True):
            largest = np.abs(b).max()
            assert np.abs(a - b).max() <= 1e-5 * largest
            assert np.abs(a - c).max() > 1e-3 * largest or by < max(SHAKES)
    return shaken(tree)


SLOW = {"cnn", "mixtral", "transformer"}
MARKED = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.exhaustive)
    for name in MODELS
]


@pytest.mark.slow
@pytest.mark.few("llama", "mixtral")
@pytest.mark.parametrize("name", MARKED)
def test_every_model_takes_adapters_without_a_line_of_its_own(name):
    cfg = MODELS[name].tiny()
    check_contract(cfg.make(), batch_of(cfg), Lora(targets=".*", rank=1, alpha=16.0))


@pytest.mark.slow
def test_a_users_model_in_one_file_takes_adapters():
    cfg = NgramConfig(vocab_size=64, embed_dim=8, hidden_dim=16)
    tree = check_contract(cfg.make(), BATCH, Lora(targets=".*kernel|embed/table", rank=2, alpha=4.0, dora=True))
    assert set(params.paths(tree["adapters"]["default"])) == {
        f"{path}/{part}" for path in ("hidden/kernel", "out/kernel", "embed/table") for part in ("a", "b", "magnitude")
    }


@pytest.mark.slow
def test_a_weight_that_is_read_in_another_way_is_merged():
    """The model is a user's own and calls no product of this package."""

    def apply(p, batch, *, rng=None, train=False, cache=None):
        from bigmodel_jax.models.base import Out

        x = jnp.take(p["table"], batch["tokens"], axis=0)
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stack"])[0]
        return Out(jnp.einsum("btd,dhe->bthe", x, p["out"]) * p["scale"])

    from bigmodel_jax.core.params import Param, normal, ones

    spec = {
        "table": Param((32, 8), (None, "embed"), normal(1.0)),
        "stack": Param((2, 8, 8), ("layers", "embed", None), normal(0.3)),
        "out": Param((8, 2, 4), ("embed", "heads", "head_dim"), normal(0.3)),
        "scale": Param((4,), (None,), ones()),
    }
    check_contract(Model(spec, apply), BATCH, Lora(targets="table|stack|out", rank=2, trained="scale"))


LLAMA = LlamaConfig.tiny()


def spec_of(lora: Lora, cfg=LLAMA) -> dict:
    return params.paths(lora.adapt(cfg.make()).spec)


def test_what_is_trained_lies_under_the_adapters_name():
    spec = spec_of(Lora(name="law", targets=r"layers/attn/[qo]|embed/table|head/table", rank=4, dora=True))
    trained = {path.removeprefix("adapters/law/"): (p.shape, p.axes) for path, p in spec.items() if p.trainable}
    assert trained == {
        "layers/attn/q/a": ((2, 32, 4), ("layers", "embed", None)),
        "layers/attn/q/b": ((2, 4, 4, 8), ("layers", None, "heads+embed", "head_dim")),
        "layers/attn/q/magnitude": ((2, 4, 8), ("layers", "heads", "head_dim")),
        "layers/attn/o/a": ((2, 4, 8, 4), ("layers", "heads+embed", "head_dim", None)),
        "layers/attn/o/b": ((2, 4, 32), ("layers", None, "embed")),
        "layers/attn/o/magnitude": ((2, 32), ("layers", "embed")),
        "embed/table/a": ((64, 4), ("vocab", None)),
        "embed/table/b": ((4, 32), (None, "embed")),
        "embed/table/magnitude": ((32,), ("embed",)),
        "head/table/a": ((32, 4), ("embed", None)),
        "head/table/b": ((4, 64), (None, "vocab")),
        "head/table/magnitude": ((64,), ("vocab",)),
    }
    assert {p.kind for path, p in spec.items() if not path.startswith("adapters/")} == {"constant"}


def test_experts_have_an_adapter_each():
    spec = spec_of(Lora(targets=".*gate", rank=2), MODELS["mixtral"].tiny())
    (a,) = (p for path, p in spec.items() if path.endswith("gate/a"))
    assert a.axes[:2] == ("layers", "experts")


@pytest.mark.parametrize(
    "cfg", [LLAMA, MODELS["deepseek"].tiny(), MODELS["bert"].tiny()], ids=lambda c: type(c).__name__
)
def test_products_go_through_the_low_rank_form(cfg, monkeypatch):
    """The spec's input and output dimensions are those of the calls, so no weight is merged."""
    from bigmodel_jax.nn import lora as nodes

    model = Lora(targets=r"(.*/)?(q|k|v|o|q_a|q_b|kv_a|gate|up|down|up/kernel|down/kernel)", rank=2).adapt(cfg.make())
    merged = []
    dense = nodes.Adapted.dense
    monkeypatch.setattr(nodes.Adapted, "dense", lambda self, *a: merged.append(self.shape) or dense(self, *a))
    jax.eval_shape(lambda t: model.apply(t, BATCH).value, params.abstract(model.spec))
    experts = [shape for shape in merged if len(shape) == 3 and shape[0] == getattr(cfg, "num_experts", None)]
    assert merged == experts


@pytest.mark.slow
def test_initial_values_are_those_of_the_base_and_of_peft():
    tree = initial(Lora(targets=".*", rank=4).adapt(LLAMA.make()))
    base, flat = params.paths(initial(LLAMA.make())), params.paths(tree)
    for path, x in base.items():
        np.testing.assert_array_equal(flat[path], x)
    q = flat["adapters/default/layers/attn/q/a"]
    assert 0.9 * 32**-0.5 < np.abs(q).max() <= 32**-0.5
    assert not np.allclose(q[0], q[1])
    assert not np.any(flat["adapters/default/layers/attn/q/b"])
    assert not np.any(flat["adapters/default/embed/table/a"])
    assert 0.8 < np.std(flat["adapters/default/embed/table/b"]) < 1.2
    assert not np.any(flat["adapters/default/head/table/b"])


def test_scales():
    def scale(**fields) -> float:
        return Lora(targets="layers/attn/q", **fields).places(LLAMA.make().spec)["layers/attn/q"].scale

    assert scale(rank=4, alpha=8.0) == 2.0
    assert scale(rank=4, alpha=8.0, rank_stabilised=True) == 4.0
    ranks = (Ranked(".*/q", 2), Ranked(".*", 8, 4.0))
    assert scale(rank=4, alpha=8.0, ranks=ranks) == 4.0
    found = Lora(targets="layers/attn/.", rank=4, ranks=ranks).places(LLAMA.make().spec)
    assert found["layers/attn/q"].spec["a"].shape[-1] == 2
    assert found["layers/attn/k"].spec["a"].shape[-1] == 8


@pytest.mark.slow
def test_parameters_trained_in_full_and_new_tokens_leave_the_base_as_it_is():
    lora = Lora(targets="layers/attn/q", trained="norm/scale|layers/mlp/up", new_tokens_from=60, rank=2)
    check_contract(LLAMA.make(), BATCH, lora)
    spec = {path: p.shape for path, p in spec_of(lora).items() if p.trainable}
    assert spec["adapters/default/embed/table/rows"] == (4, 32)
    assert spec["adapters/default/head/table/rows"] == (4, 32)
    assert spec["adapters/default/layers/mlp/up/whole"] == (2, 32, 64)


@pytest.mark.slow
def test_dropout_differs_by_layer_and_path_and_is_off_in_evaluation():
    model = Lora(targets="layers/.*", rank=2, dropout=0.5).adapt(LLAMA.make())
    tree = shaken(initial(model))
    run = functools.partial(jax.jit(model.apply, static_argnames="train"), tree, {"tokens": TOKENS})
    off, one, two = (
        run().value,
        run(rng=jax.random.key(1), train=True).value,
        run(rng=jax.random.key(2), train=True).value,
    )
    np.testing.assert_array_equal(run(rng=jax.random.key(1)).value, off)
    np.testing.assert_array_equal(run(rng=jax.random.key(1), train=True).value, one)
    assert np.abs(one - off).max() > 1e-3
    assert np.abs(one - two).max() > 1e-3
    lows = model.parts.read(tree, jax.random.key(1))["layers"]["attn"]
    keys = np.concatenate([jax.random.key_data(lows[name].low[0].key) for name in "qkvo"])
    assert len(np.unique(keys, axis=0)) == 4 * LLAMA.num_layers


@pytest.mark.slow
def test_unrolled_layers_compute_the_same():
    cfg = dataclasses.replace(LLAMA, compute=dataclasses.replace(LLAMA.compute, unroll=True))
    lora = Lora(targets="layers/.*", rank=2, dropout=0.3)
    tree = shaken(initial(lora.adapt(LLAMA.make())))
    one, other = (
        lora.adapt(c.make()).apply(tree, {"tokens": TOKENS}, rng=jax.random.key(1), train=True).value
        for c in (LLAMA, cfg)
    )
    assert_near(one, other)


@pytest.mark.slow
def test_layers_that_lie_apart_compute_the_same():
    model = Lora(targets=".*", rank=2, dora=True).adapt(LLAMA.make())
    tree = shaken(initial(model))
    apart = stack.apart(model.spec, tree)
    assert isinstance(apart["layers"], tuple)
    run = jax.jit(lambda t: model.apply(t, {"tokens": TOKENS}).value)
    assert_near(run(apart), run(tree))


@pytest.mark.slow
def test_several_adapters_add_up_and_are_chosen_by_name():
    one, two = (
        Lora(name="one", targets="layers/attn/q|head/table", rank=2),
        Lora(name="two", targets="layers/.*", rank=3),
    )
    model = Several((one, two), trained="two").adapt(LLAMA.make())
    kinds = {path.split("/")[1]: p.kind for path, p in params.paths(model.spec).items() if path.startswith("adapters/")}
    assert kinds == {"one": "constant", "two": "trained"}
    tree = shaken(initial(model))
    run = jax.jit(lambda model_tree: model.apply(model_tree, {"tokens": TOKENS}).value)
    for lora in (one, two):
        alone = lora.adapt(LLAMA.make())
        assert_near(run(only(tree, lora.name)), alone.apply(only(tree, lora.name), {"tokens": TOKENS}).value)
    base, flat = params.paths(without_adapters(tree)), params.paths(merge(model, tree))
    more = [
        params.paths(merge(model, only(tree, name)))["layers/attn/q"] - base["layers/attn/q"] for name in ("one", "two")
    ]
    assert_near(flat["layers/attn/q"], base["layers/attn/q"] + sum(more))
    assert_near(run(tree), LLAMA.make().apply(merge(model, tree), {"tokens": TOKENS}).value)


@pytest.mark.slow
def test_two_rates_are_a_group():
    """LoRA+ (arXiv:2402.12354) gives one factor its own rate. Adam's first step is as long as its
    rate."""
    optim = OptimConfig(lr=1e-3, warmup_steps=0, weight_decay=0.0, groups=(Group("adapters/.*/b", lr=16e-3),))
    model = Lora(targets="layers/attn/q", rank=2).adapt(LLAMA.make())
    trained = params.of_kind(initial(model), model.spec, "trained")
    tx = optim.make(model.spec, 10).tx
    grads = jax.tree.map(jnp.ones_like, trained)
    extra = {"grad_norm": jnp.float32(1.0), "value": jnp.float32(1.0)}
    updates, _ = jax.jit(lambda g, t: tx.update(g, tx.init(t), t, **extra))(grads, trained)
    flat = {path.rsplit("/", 1)[1]: np.abs(x).max() for path, x in params.paths(updates).items()}
    np.testing.assert_allclose(flat["b"] / flat["a"], 16, rtol=1e-4)


REFUSED = {
    "pattern": ({"targets": "layer/.*"}, r"adapters.targets = 'layer/.\*' matches .* no matrix; the nearest: layers/"),
    "no regex": ({"targets": "("}, r"adapters.targets = '\(' is not a regular expression"),
    "vectors": ({"targets": ".*scale"}, r"adapters.targets = '.\*scale' matches only vectors"),
    "rank": (
        {"rank": 17},
        r"adapters.rank = 17 is larger than layers/attn/k, of 32 inputs and 16 outputs; .* at most 16",
    ),
    "both": ({"trained": ".*/q"}, r"adapters.trained = '.\*/q' and adapters.targets both match layers/attn/q"),
    "trained": ({"trained": "haed/table"}, r"adapters.trained = 'haed/table' .*; the nearest: head/table"),
    "ranks": ({"ranks": (Ranked("nothing", 2),)}, r"adapters.ranks\[0\].pattern = 'nothing' matches"),
    "tokens": ({"new_tokens_from": 64}, r"adapters.new_tokens_from = 64; it must be below model.vocab_size = 64"),
    "name": ({"name": "a/b"}, r"adapters.name = 'a/b'"),
    "nothing": ({"targets": ""}, "nothing would be trained"),
    "dropout": ({"dropout": 0.1}, r"adapters.dropout = 0.1 with parallel.stage = 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line(case):
    fields, text = REFUSED[case]
    lora = dataclasses.replace(Lora(rank=2), **fields)
    with pytest.raises(ValueError, match=text) as error:
        lora.validate(LLAMA, LLAMA.make(), ParallelConfig(stage=2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("several", "text"),
    [
        (Several(), "no name twice"),
        (Several((Lora(rank=2), Lora(rank=3))), "no name twice"),
        (Several((Lora(rank=2),), trained="x"), "adapters.trained = 'x'"),
    ],
)
def test_mistakes_in_several_are_one_line(several, text):
    with pytest.raises(ValueError, match=text):
        several.validate(LLAMA, LLAMA.make(), ParallelConfig())


def test_matrices_are_cut_as_products_read_them():
    for name in ("llama", "gemma3", "deepseek", "vit"):
        for path, p in params.paths(MODELS[name].tiny().make().spec).items():
            found = matrix(path, p)
            if found and path.endswith("/o"):
                assert found.outer.axes == ("embed",)
            if found and path.endswith(("/q", "/k", "/v")):
                assert len(found.inner.shape) == 1
