"""What a program's text says of its instructions, and the tables made of a trace."""

import jax
import jax.numpy as jnp
import pytest

from bigmodel_jax.nn import norm
from bigmodel_jax.plan.program.frames import Call
from bigmodel_jax.profiling import operations, record
from bigmodel_jax.profiling.operations import NORMS, OTHER_PROGRAMS, PRODUCTS, WAITING, Operation, module_of
from bigmodel_jax.profiling.trace import Executed, Trace


@pytest.mark.parametrize(
    ("calls", "module"),
    [
        (
            [Call("/x/bigmodel_jax/nn/norm.py", "rms", "7"), Call("/x/bigmodel_jax/models/llama.py", "block", "9")],
            "norm",
        ),
        (
            [
                Call("/x/bigmodel_jax/nn/linear.py", "project", "7"),
                Call("/x/bigmodel_jax/nn/feedforward.py", "mlp", "9"),
            ],
            "mlp",
        ),
        ([Call("/x/bigmodel_jax/models/llama.py", "block", "9")], "llama block"),
        (
            [
                Call("/x/bigmodel_jax/models/flax_module.py", "_average_over_devices", "303"),
                Call("/x/bigmodel_jax/models/resnet.py", "Block.__call__", "9"),
            ],
            "resnet __call__",
        ),
        ([Call("/home/me/mine.py", "Mine.self_attention", "3")], "attention"),
        ([Call("/home/me/mine.py", "unembed", "3")], "head and loss"),
        ([Call("/v/site-packages/optax/_src/transform.py", "update_fn", "3")], "optimizer"),
        ([], "without a line of code"),
    ],
)
def test_the_innermost_call_that_names_a_module_counts(calls, module):
    assert module_of(calls, "jit(step)/add")[0] == module


def test_operations_of_a_compiled_program_have_kinds_modules_and_the_time_they_must_take():
    p = {
        "up": {"kernel": jnp.ones((64, 256))},
        "down": {"kernel": jnp.ones((256, 64))},
        "scale": jnp.ones(64),
    }

    def fn(p, x):
        x = norm.rms({"scale": p["scale"]}, x, eps=1e-6)
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ p["up"]["kernel"]) @ p["down"]["kernel"], None), x, length=3)[0]

    text = jax.jit(fn).lower(p, jnp.ones((32, 64))).compile().as_text()
    found = operations.operations(text, peak=lambda dtype: 1e9, bandwidth=1e12)
    products = [one for one in found.values() if one.kind == PRODUCTS]
    assert sum(one.flops for one in products) == 3 * 2 * 2 * 32 * 64 * 256
    assert sum(one.seconds for one in products) == pytest.approx(3 * 2 * 2 * 32 * 64 * 256 / 1e9)
    assert any(one.module == "norm" and one.kind == NORMS for one in found.values())
    assert any(one.container for one in found.values())


def _operation(module: str, kind: str, seconds: float | None) -> Operation:
    return Operation(module, kind, "forward", "op", "a.py:1", False, 0.0, 0.0, seconds)


def test_tables_sum_to_the_step_and_tell_programs_of_one_name_apart():
    step = {"dot.1": _operation("mlp", PRODUCTS, 2e-9), "add.2": _operation("norm", NORMS, None)}
    watched = {"dot.1": _operation("attention", PRODUCTS, 1e-9), "sub.9": _operation("attention", PRODUCTS, 1e-9)}
    executed = [
        Executed(0, 10, "dot.1", "jit_step", 1, 1),
        Executed(10, 14, "add.2", "jit_step", 1, 1),
        Executed(14, 20, "dot.1", "jit_step", 2, 2),
        Executed(20, 22, "sub.9", "jit_step", 2, 2),
        Executed(30, 35, "x", "jit_batch_digest", 3, 3),
    ]
    found = record.make(Trace(executed, 0, 40, "CPU:0"), [("jit_step", step), ("jit_step", watched)], steps=2)
    kinds = {one["name"]: one for one in found["kinds"]}
    assert {name: round(one["seconds"] * 2e9) for name, one in kinds.items()} == {
        PRODUCTS: 18,
        NORMS: 4,
        OTHER_PROGRAMS: 5,
        WAITING: 13,
    }
    assert {one["name"]: round(one["seconds"] * 2e9) for one in found["modules"]}["attention"] == 8
    assert kinds[PRODUCTS]["roofline"] == 2e-9
    assert kinds[NORMS]["roofline"] is None
    assert found["roofline_seconds"] is None
    assert [round(seconds * 1e9) for seconds in found["runs"]] == [14, 8]
