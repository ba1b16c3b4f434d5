"""What rematerialization keeps changes memory and nothing else."""

import functools
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core.params import Param, zeros
from bigmodel_jax.nn import stack

L, N, D, F = 6, 64, 32, 128
# By numpy: JAX would compile, in every process that collects tests.
RNG = np.random.default_rng(0)
P = {
    "qkv": jnp.asarray(np.float32(RNG.standard_normal((L, D, D)) * D**-0.5)),
    "up": jnp.asarray(np.float32(RNG.standard_normal((L, D, F)) * D**-0.5)),
    "down": jnp.asarray(np.float32(RNG.standard_normal((L, F, D)) * F**-0.5)),
}
X = jnp.asarray(np.float32(RNG.standard_normal((N, D))))
EVERY = typing.get_args(stack.Remat)


def block(p, x, _):
    """A layer with the names of a transformer's, which compiles faster."""
    q = checkpoint_name(x @ p["qkv"], "qkv")
    h = checkpoint_name(jnp.tanh(q) * q, "attn")
    return x + checkpoint_name(jax.nn.silu(h @ p["up"]), "mlp") @ p["down"], None


def loss(p, remat):
    return jnp.sum(stack.run(block, p, X, remat=remat)[0] ** 2)


@functools.cache
def compiled(remat):
    return jax.jit(jax.grad(functools.partial(loss, remat=remat))).lower(P).compile()


def test_every_choice_but_none_has_a_policy():
    assert set(EVERY) == {"none", *stack.POLICIES}


@pytest.mark.parametrize("remat", [r for r in EVERY if r != "none"])
def test_gradients_are_those_without_it(remat):
    want = compiled("none")(P)
    got = compiled(remat)(P)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max()), got, want)


def test_the_more_is_kept_the_more_memory_it_takes():
    kept = ("full", "save_attn", "save_qkv_attn", "save_qkv_attn_mlp")
    sizes = [compiled(remat).memory_analysis().temp_size_in_bytes for remat in kept]
    least = 0.8 * 4 * L * N * np.array([D, D, F])  # what each adds, in bytes
    assert (np.diff(sizes) > least).all(), sizes


@pytest.mark.parametrize(("remat", "names"), [("offload_input", 1), ("offload_attn", 2), ("offload_qkv_attn", 3)])
def test_what_is_offloaded_waits_in_the_hosts_memory(remat, names):
    """Each name has one array for all layers on the host, and none on the device."""
    program = str(jax.make_jaxpr(jax.grad(functools.partial(loss, remat=remat)))(P))
    assert len(set(re.findall(rf"\w+:f32<host>\[{L},{N},{D}\] ", program))) == names
    assert not re.search(rf"f32\[{L},{N},{D}\]", program)


def test_layers_that_lie_apart_on_a_cpu_share_the_memory_of_their_stack():
    spec = {name: Param(x.shape, ("layers", None, None), zeros()) for name, x in P.items()}
    own = jax.tree.map(jnp.copy, P)
    layers = stack.apart(spec, own)
    for number, layer in enumerate(layers):
        for name, x in own.items():
            np.testing.assert_array_equal(layer[name], x[number])
            assert layer[name].unsafe_buffer_pointer() - x.unsafe_buffer_pointer() == number * x.nbytes // L
    # The program that donates a stack leaves the layers as they are.
    second = jax.tree.map(np.array, layers[1])
    jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)(own)
    jax.tree.map(np.testing.assert_array_equal, layers[1], second)
