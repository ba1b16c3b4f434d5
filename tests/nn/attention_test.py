import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import MODELS
from bigmodel_jax.models.decoder import Cache
from bigmodel_jax.nn import attention
from bigmodel_jax.nn.attention import Where

# Encoder-decoders need pairs: tests/parity/encoder_decoders_test.py holds them, packed and decoded, to their references.
DECODERS = [
    pytest.param(name, marks=[] if name in ("llama", "gpt2") else pytest.mark.slow)
    for name, config in MODELS.items()
    if config.tiny().make().make_cache and not hasattr(config, "num_decoder_layers")
]


def random_qkv(T, S, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(k, (2, n, heads, 8)) for k, n, heads in zip(keys, (T, S, S), (4, 2, 2), strict=True)]


def where(length, seed=0):
    segments = np.sort(np.random.default_rng(seed).integers(0, 4, (2, length)), axis=1).astype(np.int32)
    return Where(jnp.broadcast_to(jnp.arange(length), (2, length)), jnp.asarray(segments))


@pytest.mark.parametrize("length", [64, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_chunked_equals_plain_forward_and_backward(length, causal, monkeypatch):
    """Also at lengths that the block size does not divide."""
    monkeypatch.setattr(attention, "CHUNK", 32)
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


def test_chunked_needs_little_memory():
    shapes = [jax.ShapeDtypeStruct((1, 4096, heads, 64), jnp.float32) for heads in (4, 2, 2)]
    at = Where(jnp.arange(4096)[None], jnp.ones((1, 4096), jnp.int32))

    def temp(implementation):
        def loss(q, k, v):
            return jnp.sum(attention.attend(q, k, v, at, at, implementation=implementation))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp("chunked") < 0.2 * temp("plain")


@pytest.mark.parametrize("name", DECODERS)
def test_causality_by_gradient(name):
    """The logits at t have no gradient with respect to the embedding of any later token, and some to every earlier."""
    model = MODELS[name].tiny().make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = jnp.arange(8)[None]  # all different: a token's row of the table is that position's input alone

    def energy(table, t):
        # Only logits of tokens that are not in the row: with tied tables the others' rows would be read there too.
        return jnp.sum(jnp.square(model.apply(p | {"embed": {"table": table}}, {"tokens": tokens}).value[0, t, 40:]))

    for t in (0, 3, 7):
        grad = np.abs(jax.grad(energy)(p["embed"]["table"], t)).sum(-1)[:8]
        assert (grad[: t + 1] > 0).all(), (t, grad)
        assert (grad[t + 1 :] == 0).all(), (t, grad)


@pytest.mark.parametrize("name", DECODERS)
def test_packed_documents_do_not_see_each_other(name):
    """Two documents in one row give the logits of each alone; changing one leaves the other's bits unchanged."""
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


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_with_a_cache_equals_the_full_forward(name):
    model = MODELS[name].tiny().make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 64)
    full = model.apply(p, {"tokens": tokens}).value
    cache: Cache = model.make_cache(2, 16, jnp.float32)
    out = model.apply(p, {"tokens": tokens[:, :5]}, cache=cache)
    pieces, cache = [out.value], out.cache
    step = jax.jit(lambda batch, cache: model.apply(p, batch, cache=cache))
    for i in range(5, 12):
        out = step({"tokens": tokens[:, i : i + 1], "positions": jnp.full((2, 1), i)}, cache)
        pieces.append(out.value)
        cache = out.cache
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=1e-5)
