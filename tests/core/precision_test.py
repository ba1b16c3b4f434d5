"""Casting touches floating leaves and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.precision import cast


def test_cast_touches_floating_leaves_alone():
    tree = {
        "w": jnp.ones(3),
        "half": jnp.ones(3, jnp.float16),
        "ids": jnp.arange(3),
        "mask": np.array([True]),
        "key": jax.random.key(0),
    }
    got = cast(tree, "bfloat16")
    assert {k: str(v.dtype) for k, v in got.items()} == {
        "w": "bfloat16",
        "half": "bfloat16",
        "ids": "int32",
        "mask": "bool",
        "key": "key<fry>",
    }
    assert got["ids"] is tree["ids"]


def test_gradients_through_a_cast_arrive_in_the_master_dtype():
    grad = jax.grad(lambda w: cast({"w": w}, "bfloat16")["w"].sum().astype(jnp.float32))(jnp.ones(3))
    assert grad.dtype == jnp.float32
