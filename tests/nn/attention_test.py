import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.models import MODELS
from bigmodel_jax.models.decoder import Cache
from bigmodel_jax.nn.attention import attention, blockwise, splash
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.nn.attention.visibility import Rule

# Encoder-decoders need pairs: tests/parity/encoder_decoders_test.py holds them, packed and decoded,
# to their references. Slow: decoders with a kind of attention of their own. The others share one of
# these kinds, and are exhaustive.
SLOW = {"gemma3", "deepseek", "gpt_oss", "llava", "olmo3", "rnn"}


def marks(name: str) -> list:
    return [] if name in ("llama", "gpt2") else [pytest.mark.slow if name in SLOW else pytest.mark.exhaustive]


DECODERS = [
    pytest.param(name, marks=marks(name))
    for name, config in MODELS.items()
    if hasattr(config.tiny(), "max_seq_len")
    and not hasattr(config, "num_decoder_layers")
    and config.tiny().make().make_cache
]


def random_qkv(T, S, seed=0):
    rng, shapes = np.random.default_rng(seed), ((2, T, 4, 8), (2, S, 2, 8), (2, S, 2, 8))
    return [jnp.asarray(np.float32(rng.standard_normal(shape))) for shape in shapes]


def where(length, seed=0):
    segments = np.sort(np.random.default_rng(seed).integers(0, 4, (2, length)), axis=1).astype(np.int32)
    return Where(jnp.broadcast_to(jnp.arange(length), (2, length)), jnp.asarray(segments))


@pytest.mark.slow
@pytest.mark.few("True-100")
@pytest.mark.parametrize("length", [64, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_chunked_equals_plain_forward_and_backward(length, causal, monkeypatch):
    """This holds also at lengths that the block size does not divide."""
    monkeypatch.setattr(blockwise, "CHUNK", 32)
    q, k, v = random_qkv(length, length)
    at = where(length)

    def run(implementation):
        def loss(q, k, v):
            out = attention.attend(q, k, v, at, at, causal=causal, implementation=implementation)
            return jnp.sum(jnp.square(out)), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    (plain_grads, plain), (chunked_grads, chunked) = run("plain"), run("chunked")
    np.testing.assert_allclose(chunked, plain, atol=2e-6)
    for a, b in zip(chunked_grads, plain_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_chunked_needs_little_memory():
    shapes = [jax.ShapeDtypeStruct((1, 4096, heads, 64), jnp.float32) for heads in (4, 2, 2)]
    at = Where(jnp.arange(4096)[None], jnp.ones((1, 4096), jnp.int32))

    def temp(implementation):
        def loss(q, k, v):
            def layer(q, _):
                return attention.attend(q, k, v, at, at, implementation=implementation), None

            # A model has a loop over layers, and the compiler may move out of it what is the same
            # in all of them.
            return jnp.sum(jax.lax.scan(layer, q, length=2)[0])

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp("chunked") < 0.2 * temp("plain")


RULES = {
    "causal": Rule(),
    "full": Rule(causal=False),
    "window": Rule(window=40),
    "window_both_ways": Rule(causal=False, window=40),
    "window_of_both_kinds": Rule(window=40),
    "softcap": Rule(softcap=5.0),
    "sinks": Rule(),
}


def forward_and_backward(implementation, rule, local, sinks, length=256):
    """(outputs, gradients of q, k, v and sinks) of one of `attention.LOCAL`, or like it; GQA, v
    narrower than q."""
    q, k, v = random_qkv(length, length)
    at = where(length)

    def loss(q, k, v, sinks):
        out = implementation(rule, q * 0.3, k, v, sinks, at, at, local)
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v[..., :6], sinks)
    return out, grads


# tests/parity/flax_layers_test.py has chunks of the plain rules, and the test below has a causal
# splash.
@pytest.mark.few(
    *(f"{case}-chunked" for case in RULES if case not in ("causal", "full", "window")),
    *(f"{case}-splash" for case in RULES if case not in ("causal", "window")),
)
@pytest.mark.parametrize("implementation", ["chunked", pytest.param("splash", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", RULES)
def test_every_rule_equals_plain_forward_and_backward(case, implementation, monkeypatch):
    """Pallas's interpreter runs splash's kernels with the same mathematics on any platform."""
    monkeypatch.setattr(blockwise, "CHUNK", 48)
    local = jnp.array(False) if case == "window_of_both_kinds" else None
    sinks = jnp.array([0.5, -1.0, 2.0, 0.0]) if case == "sinks" else None
    one = functools.partial(splash.attend, interpret=True) if implementation == "splash" else attention.LOCAL["chunked"]
    want, want_grads = forward_and_backward(attention.LOCAL["plain"], RULES[case], local, sinks)
    got, got_grads = forward_and_backward(one, RULES[case], local, sinks)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_splash_pads_to_whole_lanes():
    one = functools.partial(splash.attend, interpret=True)
    got, got_grads = forward_and_backward(one, Rule(), None, None, length=200)
    want, want_grads = forward_and_backward(attention.LOCAL["plain"], Rule(), None, None, length=200)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_dot_product_equals_plain():
    q, k, v = random_qkv(64, 64)
    at = where(64)
    for options in ({}, {"causal": False}, {"window": 7}):
        want = attention.attend(q, k, v, at, at, **options, implementation="plain")
        got = attention.attend(q, k, v, at, at, **options, implementation="dot_product")
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_a_pair_of_blocks_without_a_visible_key_is_not_computed(monkeypatch):
    """A mask hides the poisoned keys from every query of the block, and the outputs stay finite."""
    monkeypatch.setattr(blockwise, "CHUNK", 32)
    q, k, v = random_qkv(64, 64)
    at = Where(jnp.broadcast_to(jnp.arange(64), (2, 64)), jnp.ones((2, 64), jnp.int32))
    bad = v.at[:, 32:].set(jnp.nan)
    out = attention.attend(q, k, bad, at, at, implementation="chunked")
    assert np.isfinite(out[:, :32]).all()
    assert np.isnan(out[:, 32:]).all()


class Platform:
    """A mesh of devices that are not here, as far as a choice by platform sees it."""

    def __init__(self, platform):
        self.devices = np.array([type("Device", (), {"platform": platform})()])
        self.size, self.shape = 1, {}


CHOICES = {
    "tpu": ("tpu", 1024, {}, "splash"),
    "tpu, short": ("tpu", 256, {}, "plain"),
    "tpu, one query": ("tpu", 4096, {"T": 1}, "plain"),
    "tpu, decode cache": ("tpu", 4096, {"T": 512}, "chunked"),
    "tpu, cross-attention": ("tpu", 4096, {"T": 512, "causal": False}, "splash"),
    "gpu": ("gpu", 1024, {}, "cudnn"),
    "gpu, float32": ("gpu", 4096, {"dtype": jnp.float32}, "chunked"),
    "gpu, soft cap": ("gpu", 4096, {"softcap": 30.0}, "chunked"),
    "gpu, very long": ("gpu", 65_536, {}, "chunked"),
    "gpu, large heads": ("gpu", 1024, {"h": 256}, "plain"),
    "cpu": ("cpu", 1024, {}, "plain"),
    "cpu, long": ("cpu", 2048, {}, "chunked"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_auto_chooses_by_the_platform_of_the_mesh(case, monkeypatch):
    platform, S, options, want = CHOICES[case]
    options = {"T": S, "causal": True, "softcap": 0.0, "dtype": jnp.bfloat16, "h": 64} | options
    q, k = (jax.ShapeDtypeStruct((1, n, 2, options["h"]), options["dtype"]) for n in (options["T"], S))
    rule = Rule(options["causal"], softcap=options["softcap"])
    with sharding.use(Platform(platform), sharding.Rules()):
        assert attention._choose("auto", rule, q, k, k, None, None) == want


REFUSALS = {
    "splash on cpu": ("splash", "cpu", {}, "runs on TPU alone, and this is a cpu"),
    "cudnn on tpu": ("cudnn", "tpu", {}, "runs on NVIDIA GPUs alone, and this is a tpu"),
    "cudnn in float32": ("cudnn", "gpu", {}, "precision.compute gives float32"),
    "cudnn, soft cap": ("cudnn", "gpu", {"rule": Rule(softcap=3.0)}, "has a soft cap"),
    "splash, bias": (
        "splash",
        "tpu",
        {"bias": jnp.asarray(np.zeros((1, 4, 8, 8), np.float32))},
        "has an attention bias",
    ),
    "chunked, bias": (
        "chunked",
        "cpu",
        {"bias": jnp.asarray(np.zeros((1, 4, 8, 8), np.float32))},
        "has an attention bias",
    ),
    "dot_product, sinks": (
        "dot_product",
        "cpu",
        {"sinks": jnp.asarray(np.zeros(4, np.float32))},
        "has attention sinks",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_an_implementation_cannot_do_is_one_line(case):
    name, platform, options, words = REFUSALS[case]
    options = {"rule": Rule(), "sinks": None, "bias": None} | options
    q, k, v = random_qkv(8, 8)
    with sharding.use(Platform(platform), sharding.Rules()), pytest.raises(ValueError, match=words) as error:
        attention._choose(name, options["rule"], q, k, v, options["sinks"], options["bias"])
    assert str(error.value).startswith(f"model.compute.attention = {name!r}: ")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.few("gpt2", "gpt_oss", "rnn")
@pytest.mark.parametrize("name", DECODERS)
def test_causality_by_gradient(name):
    """The logits at t have no gradient with respect to the embedding of any later token, and one
    with respect to every earlier token."""
    model = MODELS[name].tiny().make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = jnp.arange(8)[None]  # all different: a token's row of the table is that position's input alone

    def energy(table, t):
        # Only logits of tokens that are not in the row: with tied tables the others' rows would be
        # read there too.
        return jnp.sum(jnp.square(model.apply(p | {"embed": {"table": table}}, {"tokens": tokens}).value[0, t, 40:]))

    slope = jax.jit(jax.grad(energy))
    for t in (0, 3, 7):
        grad = np.abs(slope(p["embed"]["table"], t)).sum(-1)[:8]
        assert (grad[: t + 1] > 0).all(), (t, grad)
        assert (grad[t + 1 :] == 0).all(), (t, grad)


# tests/parity packs documents of every kind of decoder, and decodes them, as their references do.
@pytest.mark.few("llama")
@pytest.mark.parametrize("name", DECODERS)
def test_packed_documents_do_not_see_each_other(name):
    """Two documents in one row have the logits of each alone. A change of one leaves the other's
    bits unchanged."""
    model = MODELS[name].tiny().make()
    p = params.init(model.spec, jax.random.key(0))
    apply = jax.jit(model.apply)
    first, second = np.arange(5) + 3, np.arange(7) + 20
    packed = {
        "tokens": np.concatenate([first, second, [0, 0]])[None],
        "positions": np.concatenate([np.arange(5), np.arange(7), [0, 0]])[None],
        "segment_ids": np.array([[1] * 5 + [2] * 7 + [0] * 2]),
    }
    together = apply(p, packed).value[0]
    np.testing.assert_allclose(together[:5], apply(p, {"tokens": first[None]}).value[0], atol=1e-5)
    np.testing.assert_allclose(together[5:12], apply(p, {"tokens": second[None]}).value[0], atol=1e-5)
    changed = dict(packed, tokens=packed["tokens"].copy())
    changed["tokens"][0, :5] = 9
    np.testing.assert_array_equal(apply(p, changed).value[0, 5:12], together[5:12])
    assert (np.asarray(apply(p, changed).value[0, :5]) != np.asarray(together[:5])).any()


@pytest.mark.slow
@pytest.mark.few("llama")
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_with_a_cache_equals_the_full_forward(name):
    model = MODELS[name].tiny().make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 64)
    full = model.apply(p, {"tokens": tokens}).value
    cache: Cache = params.empty(model.make_cache(2, 16, jnp.float32))
    out = model.apply(p, {"tokens": tokens[:, :5]}, cache=cache)
    pieces, cache = [out.value], out.cache
    step = jax.jit(lambda batch, cache: model.apply(p, batch, cache=cache))
    for i in range(5, 12):
        out = step({"tokens": tokens[:, i : i + 1], "positions": jnp.full((2, 1), i)}, cache)
        pieces.append(out.value)
        cache = out.cache
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=1e-5)
