"""Rotary positions: stretched frequencies against transformers' ROPE_INIT_FUNCTIONS, and what a
rotation keeps.

tests/parity/fixtures/rope is written by tests/parity/make_reference.py.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.models import deepseek
from bigmodel_jax.nn import position
from bigmodel_jax.nn.position import RopeScaling
from bigmodel_jax.pretrained.family import rope_from_hf, rope_settings, rope_to_hf

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "rope" / "reference.json"
CASES = json.loads(FIXTURE.read_text())
every_case = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


@every_case
def test_frequencies_are_those_of_the_reference(case):
    theta, scaling = rope_from_hf(case["config"])
    ours = position.frequencies(case["config"]["head_dim"], theta, scaling)
    assert ours.dtype == np.float32
    # Both sides compute in float32: a few units in the last place.
    np.testing.assert_allclose(ours, case["frequencies"], rtol=1e-6)
    plain = position.frequencies(case["config"]["head_dim"], theta)
    assert ours[-1] < 0.6 * plain[-1], "the slowest is stretched"


@every_case
def test_attention_factors_are_those_of_the_reference(case):
    """The test reads the factor of a Llama, and of a DeepSeek, whose config holds both scales
    itself."""
    theta, scaling = rope_from_hf(case["config"])
    rope = rope_settings(case["config"])
    cfg = dataclasses.replace(
        deepseek.DeepseekConfig.tiny(),
        qk_rope_head_dim=case["config"]["head_dim"],
        rope_theta=theta,
        rope_scaling=dataclasses.replace(scaling, attention_factor=rope.get("attention_factor", 0.0)),
        mscale=rope.get("mscale", 0.0),
        mscale_all_dim=rope.get("mscale_all_dim", 0.0),
    )
    cos, _ = deepseek.rope_angles(cfg, jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(cos, case["attention_factor"], rtol=1e-6)
    assert position.attention_factor(scaling) == pytest.approx(case["attention_factor"], rel=1e-12)


@every_case
def test_settings_survive_the_way_out_and_in(case):
    theta, scaling = rope_from_hf(case["config"])
    again = rope_from_hf(rope_to_hf(theta, scaling) | {"max_position_embeddings": 1})
    assert again[0] == theta
    changed = {f for f in vars(scaling) if getattr(again[1], f) != getattr(scaling, f)}
    # A linear stretch does not depend on the original length, so no file says it.
    assert changed <= ({"original_max_seq_len"} if scaling.kind == "linear" else set())


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rotation_keeps_lengths_and_depends_on_distance_alone(interleaved):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def product(m, n):
        angles = [position.rope_angles(jnp.array([[at]]), 16) for at in (m, n)]
        turned = [position.rope(x, a, interleaved=interleaved) for x, a in zip((q, k), angles, strict=True)]
        np.testing.assert_allclose(jnp.linalg.norm(turned[0]), jnp.linalg.norm(q), rtol=1e-5)
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-3)


def test_both_orders_of_the_dimensions_are_one_rotation():
    """Interleaved pairs (2i, 2i + 1) equal the pairs (i, i + h/2) of permuted dimensions."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    angles = position.rope_angles(jnp.broadcast_to(jnp.arange(5), (2, 5)), 8, scaling=RopeScaling("linear", 2.0))
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    interleaved = position.rope(x, angles, interleaved=True)
    np.testing.assert_array_equal(interleaved[..., order], position.rope(x[..., order], angles))
