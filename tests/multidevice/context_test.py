"""A sequence cut over devices: ring and Ulysses attention equal attention on one device, its memory
and its traffic."""

import dataclasses
import functools
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.nn.attention import attention, blockwise, context, splash_ring
from bigmodel_jax.nn.attention.attention import Where

# ---------------------------------------------------------------------------------- attention alone

B, T, H, h = 2, 64, 8, 8
LAYOUTS = {
    "ring": ParallelConfig(data=1, seq=4, tensor=2),
    "ulysses": ParallelConfig(data=2, seq=4, context="ulysses"),
    "ulysses with tensor": ParallelConfig(data=1, seq=4, tensor=2, context="ulysses"),
}
# Options of attend, number of kv heads, documents in a row.
CASES = {
    "causal": ({}, 8, 1),
    "full": ({"causal": False}, 8, 1),
    "packed, grouped": ({}, 2, 4),
    "packed, full, grouped": ({"causal": False}, 4, 4),
    "packed, grouped, window": ({"window": 7}, 2, 3),
    "full, window": ({"causal": False, "window": 9}, 8, 1),
    "layers of both kinds": ({"window": 7, "local": True}, 2, 3),
    "softcap and sinks": ({"softcap": 4.0, "sinks": True}, 4, 2),
}


def inputs(num_kv_heads: int, documents: int):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, n, h)).astype(np.float32) for n in (H, num_kv_heads, num_kv_heads))
    starts = [np.sort(rng.choice(np.arange(1, T), documents - 1, replace=False)) for _ in range(B)]
    segments = np.stack([1 + np.searchsorted(s, np.arange(T), side="right") for s in starts]).astype(np.int32)
    first = np.stack([np.concatenate([[0], s])[row - 1] for s, row in zip(starts, segments, strict=True)])
    return q, k, v[..., :6], np.arange(T, dtype=np.int32) - first.astype(np.int32), segments


def outputs_and_gradients(parallel: ParallelConfig, num_devices: int, options: dict, *arrays):
    mesh = sharding.make_mesh(parallel, jax.devices()[:num_devices])
    options = dict(options)
    sinks = jnp.linspace(-1.0, 2.0, H) if options.pop("sinks", False) else None
    local = options.pop("local", None)

    def loss(q, k, v, sinks, positions, segments, local):
        at = Where(positions, segments)
        with sharding.use(mesh, parallel.rules, parallel):
            out = attention.attend(q, k, v, at, at, sinks=sinks, local=local, **options)
        return jnp.sum(jnp.sin(out)), out

    fn = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    grads, out = fn(*arrays[:3], sinks, *arrays[3:], None if local is None else jnp.array(local))
    return out, jax.tree.leaves(grads)


# Slow: every case in a ring; where heads are exchanged, attention itself is that of one device.
EXCHANGED = {"packed, grouped, window", "packed, full, grouped", "softcap and sinks"}


def marks(case: str, layout: str) -> list:
    if (case, layout) == ("packed, grouped, window", "ring"):
        return []
    return [pytest.mark.slow if layout == "ring" or case in EXCHANGED else pytest.mark.exhaustive]


@pytest.mark.few(
    "packed, grouped-ring",
    "packed, full, grouped-ulysses with tensor",
    "packed, grouped, window-ulysses",
    "full, window-ring",
    "layers of both kinds-ring",
    "softcap and sinks-ring",
)
@pytest.mark.parametrize(("case", "layout"), [pytest.param(c, p, marks=marks(c, p)) for c in CASES for p in LAYOUTS])
def test_attention_equals_one_device(case, layout, monkeypatch):
    monkeypatch.setattr(blockwise, "CHUNK", 4)  # several blocks on each device
    options, num_kv_heads, documents = CASES[case]
    arrays = inputs(num_kv_heads, documents)
    want, want_grads = outputs_and_gradients(ParallelConfig(data=1), 1, options, *arrays)
    got, got_grads = outputs_and_gradients(LAYOUTS[layout], 8, options, *arrays)
    np.testing.assert_allclose(got, want, atol=2e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.few("2-softcap and sinks")
@pytest.mark.slow
@pytest.mark.parametrize(
    "case", few([c for c in CASES if "window" not in CASES[c][0]], "packed, grouped", "softcap and sinks")
)
@pytest.mark.parametrize("seq", few((2, 4), 2))
def test_a_ring_of_splash_kernels_equals_one_device(case, seq, monkeypatch):
    """Pallas's interpreter runs the kernels. The test compares the masks and merges of the turns,
    and the gradients of the whole row's softmax."""
    monkeypatch.setattr(sys.modules[__name__], "T", 256 * seq)

    def turns(rule, axis, q, k, v, sinks, q_where, k_where, window):
        return splash_ring.attend(rule, axis, True, q, k, v, sinks, q_where, k_where)

    options, num_kv_heads, documents = CASES[case]
    arrays = inputs(num_kv_heads, documents)
    want, want_grads = outputs_and_gradients(ParallelConfig(data=1), 1, options, *arrays)
    monkeypatch.setattr(attention, "_turns", lambda *_: turns)
    got, got_grads = outputs_and_gradients(ParallelConfig(data=1, seq=seq), seq, options, *arrays)
    np.testing.assert_allclose(got, want, atol=2e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_length_that_the_devices_do_not_divide_is_left_whole():
    arrays = [x[:, :63] for x in inputs(2, 3)]
    want, want_grads = outputs_and_gradients(ParallelConfig(data=1), 1, {}, *arrays)
    got, got_grads = outputs_and_gradients(LAYOUTS["ring"], 8, {}, *arrays)
    np.testing.assert_allclose(got, want, atol=2e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ring", "ulysses"])
def test_attention_inside_a_region_that_divides_another_axis_by_hand(kind):
    """The sum over slices does the same: its shard_map divides one axis, and the compiler divides
    the others."""
    parallel = ParallelConfig(data=2, seq=2, tensor=2, context=kind)
    mesh = sharding.make_mesh(parallel)
    q, k, v, positions, segments = inputs(2, 3)

    def local(q, k, v, positions, segments):
        at = Where(positions, segments)
        with sharding.use(mesh, dataclasses.replace(parallel.rules, batch="fsdp"), parallel):
            return attention.attend(q, k, v, at, at)

    by_hand = jax.shard_map(
        local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}, check_vma=False
    )
    at = Where(positions, segments)
    want = attention.attend(q, k, v, at, at)
    np.testing.assert_allclose(jax.jit(by_hand)(q, k, v, positions, segments), want, atol=2e-6)


def test_the_zigzag_order_gives_every_device_the_same_in_every_turn():
    """The test counts pairs of pieces in which a query sees a key: three of four in the first turn,
    which has the device's own keys, and two in each other turn. In the text's order the count is 0
    to 4."""
    n = 8
    reorder = functools.partial(context._reorder, axis="seq")
    mesh = sharding.make_mesh(ParallelConfig(data=1, seq=n))
    order = jax.shard_map(reorder, mesh=mesh, in_specs=P(None, "seq"), out_specs=P(None, "seq"), check_vma=False)
    pieces = np.asarray(order(jnp.arange(2 * n)[None]))[0].reshape(n, 2)
    assert sorted(map(tuple, np.sort(pieces, axis=1))) == [(i, 2 * n - 1 - i) for i in range(n)]
    for turn in range(n):
        keys = np.roll(pieces, turn, axis=0)
        seen = (pieces[:, :, None] >= keys[:, None, :]).sum((1, 2))
        assert set(seen) == {3 if turn == 0 else 2}


def test_one_query_against_a_cache_is_left_to_the_compiler():
    q, k, v, positions, segments = inputs(2, 1)
    mesh = sharding.make_mesh(LAYOUTS["ring"])

    def decode(q, k, v, positions, segments):
        at = Where(positions, segments)
        with sharding.use(mesh, LAYOUTS["ring"].rules, LAYOUTS["ring"]):
            return attention.attend(q, k, v, Where(at.positions[:, -1:], at.segments[:, -1:]), at)

    got = jax.jit(decode)(q[:, -1:], k, v, positions, segments)
    at = Where(positions, segments)
    np.testing.assert_allclose(got, attention.attend(q, k, v, at, at)[:, -1:], atol=2e-6)


# ------------------------------------------------------------------------------------ what it costs


def compiled(parallel: ParallelConfig, length: int, *, backward: bool, num_kv_heads: int = 2):
    """The compiled program of one causal attention, batch 1, 4 heads of 16."""
    mesh = sharding.make_mesh(parallel)
    rows = NamedSharding(mesh, P(None, "seq"))
    shapes = [
        jax.ShapeDtypeStruct((1, length, n, 16), jnp.float32, sharding=rows) for n in (4, num_kv_heads, num_kv_heads)
    ]

    def loss(q, k, v, where):
        def layer(q, _):
            return jnp.sin(attention.attend(q, k, v, where, where)), None

        # A model has a loop over layers, and the compiler may move out of it what is the same in
        # all of them.
        with sharding.use(mesh, parallel.rules, parallel):
            return jnp.sum(jax.lax.scan(layer, q, length=1)[0])

    where = Where(*(jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=rows) for _ in range(2)))
    fn = jax.value_and_grad(loss, argnums=(0, 1, 2)) if backward else loss
    return jax.jit(fn).lower(*shapes, where).compile()


@pytest.mark.slow
@pytest.mark.few("ring-4")
@pytest.mark.parametrize(("kind", "n"), [("ring", 4), ("ulysses", 2)])
def test_memory_goes_with_the_part_of_a_device(kind, n, monkeypatch):
    """At 65,536 tokens the (T, T) logits of one head are 16 GiB. Twice the length on twice the
    devices costs the same."""
    monkeypatch.setattr(blockwise, "CHUNK", 128)  # blocks are of one size whatever the length: small ones, here

    def temp(n, length):
        parallel = ParallelConfig(data=8 // n, seq=n, context=kind)
        return compiled(parallel, length, backward=True, num_kv_heads=4).memory_analysis().temp_size_in_bytes

    few, many = temp(n, 65_536), temp(2 * n, 65_536)
    assert few < 128 * 2**20
    assert many < 0.6 * few
    assert temp(2 * n, 131_072) == pytest.approx(few, rel=0.05)


def moved(program: str, kind: str) -> int:
    """Bytes that a device sends by collectives of this kind; what stands in a loop counts with the
    loop's turns."""
    total = 0
    turns = {body: int(n) for body, n in re.findall(r"body=(%[\w.-]+).*?known_trip_count\":\{\"n\":\"(\d+)\"", program)}
    name = ""
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY")):
            name = line.split(" ")[0]
        match = re.search(rf"= (\(.*?\)|\S+) {kind}(?:-start)?\(", line)
        if match:
            sizes = re.findall(r"(?:f32|s32)\[([\d,]*)\]", match[1])
            total += turns.get(name, 1) * 4 * sum(math.prod(map(int, dims.split(","))) for dims in sizes)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("n", few((4, 8), 4))  # of 2, the one move forward serves the backward pass, too
def test_a_ring_moves_what_it_owes(n, note):
    """A device has t tokens in float32. The forward pass sends keys, values and their places n - 1
    times. It sends queries, keys, values and both places into the zig-zag order before the ring,
    and the outputs back after it. The backward pass sends the same, and the keys' gradients go one
    hop further."""
    t = 1024 // n
    q, kv, where = (4 * t * size for size in (4 * 16, 2 * 2 * 16, 2))
    forward = (n - 1) * (kv + where) + q + kv + where + q
    backward = (n - 1) * (kv + where) + n * kv + q + kv + q
    program = compiled(ParallelConfig(data=8 // n, seq=n), 1024, backward=False).as_text()
    assert moved(program, "collective-permute") == pytest.approx(forward, rel=0.05)
    parallel = ParallelConfig(data=8 // n, seq=n)
    program = compiled(parallel, 1024, backward=True).as_text()
    found, formula = moved(program, "collective-permute"), f"{2 * n - 2} (kv + s) + {n} kv + 2 kv + s + 4 q"
    note("sequence", "one attention", parallel, moved=[("seq", found, forward + backward, formula)])
    assert found == pytest.approx(forward + backward, rel=0.05)
    # Besides the permutes, the devices exchange one number: they sum the loss.
    assert set(re.findall(r"= (\S+) (?:all-to-all|all-reduce|all-gather)\(", program)) == {"f32[]"}


@pytest.mark.slow
def test_ulysses_moves_what_it_owes(note):
    """The 4 devices have 2 kv heads repeated to 4. Queries, keys, values, outputs, and all their
    gradients move once each."""
    t = 1024 // 4
    parallel = ParallelConfig(data=2, seq=4, context="ulysses")
    program = compiled(parallel, 1024, backward=True).as_text()
    found, due = moved(program, "all-to-all"), 2 * 4 * 4 * t * 4 * 16
    note("sequence", "one attention", parallel, moved=[("seq", found, due, "8 q")])
    assert found == pytest.approx(due, rel=0.05)
