"""A digest that no sharding changes and every bit does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.checkpoint.digest import digests

DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "int8", "uint8", "uint16"]


def random_bits(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = jnp.dtype(dtype)
    raw = np.random.default_rng(0).integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return raw.view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_bit_changes_it(dtype):
    x = random_bits(dtype, (3, 5))
    flipped = []
    for bit in range(8 * x.nbytes):
        raw = bytearray(x.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        flipped.append(np.frombuffer(bytes(raw), x.dtype).reshape(x.shape))
    before = int(digests([jnp.asarray(x)])[0])
    after = np.asarray(jax.vmap(lambda a: digests([a])[0])(jnp.asarray(np.stack(flipped))))
    assert (after != before).all()


def test_every_bool_and_every_key_word_changes_it():
    x = jnp.arange(9) % 2 == 0
    assert len({int(digests([x.at[i].set(~x[i])])[0]) for i in range(9)} | {int(digests([x])[0])}) == 10
    assert int(digests([jax.random.key(1)])[0]) != int(digests([jax.random.key(2)])[0])


def test_a_lost_or_moved_block_of_constants_changes_it():
    ones = jnp.ones((64, 512))
    assert int(digests([ones])[0]) != int(digests([ones.at[:, :256].set(0)])[0])
    half = ones.at[:32].set(0)
    assert int(digests([half])[0]) != int(digests([half[::-1]])[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_no_sharding_and_no_device_count_changes_it(dtype):
    x = random_bits(dtype, (16, 8)) if dtype != "bool" else random_bits("uint8", (16, 8)) > 127
    alone = int(digests([jax.device_put(x, jax.devices()[0])])[0])
    for count, specs in {8: [P(), P("a"), P(None, "b"), P(("a", "b")), P("b", "a")], 4: [P("a"), P("b")]}.items():
        mesh = Mesh(np.array(jax.devices()[:count]).reshape(2, -1), ("a", "b"))
        for spec in specs:
            result = digests([jax.device_put(x, NamedSharding(mesh, spec))])
            assert result.is_fully_replicated
            assert int(result[0]) == alone, (count, spec)


def test_an_array_in_the_hosts_memory_has_the_same_digest():
    x = jnp.arange(12.0).reshape(3, 4)
    there = jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))
    assert digests([there])[0] == digests([x])[0]


def test_one_array_at_a_time_is_written_down():
    leaves = [jax.ShapeDtypeStruct((256, 1024), jnp.float32)] * 8
    usage = digests.lower(leaves).compile().memory_analysis()
    assert usage.temp_size_in_bytes < 2 * 256 * 1024 * 4
