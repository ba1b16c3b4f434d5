"""Attention on this machine's GPU: `attend` in bfloat16 against its float32 definition, and times.

    uv run --extra gpu python benchmarks/gpu_attention.py [times|errors]

It prints a JSON object per line. Errors are relative norms, ||x - reference|| / ||reference||,
beside those of the plain implementation in bfloat16. The reference is `plain` in float32 with
full-precision products.
"""

import functools
import json
import os
import statistics
import sys
import time

# Only numbers matter here, not speed; autotuning full-precision products would take longer than all
# the rest.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
)

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.visibility import Where

# {name: (causal, window, packed)}; packed rows have several documents, and padding at the end.
CASES = {
    "causal": (True, None, False),
    "whole": (False, None, False),
    "causal, packed": (True, None, True),
    "whole, packed": (False, None, True),
    "causal, window": (True, 256, False),
    "causal, packed, window": (True, 256, True),
}
HEADS = {"grouped 64": (8, 2, 64), "grouped 128": (8, 2, 128), "one to one 64": (8, 8, 64)}


def places(rows: int, length: int, packed: bool) -> Where:
    """Positions and segments of rows: one document each, or three of different lengths and an
    eighth padding."""
    if not packed:
        positions = np.broadcast_to(np.arange(length), (rows, length))
        return Where(jnp.asarray(positions, jnp.int32), jnp.ones((rows, length), jnp.int32))
    sizes = np.array([length // 2, length // 8, length // 4, length // 8])
    segments = np.repeat([1, 2, 3, 0], sizes)
    positions = np.concatenate([np.arange(n) for n in sizes])
    both = (np.tile(x, (rows, 1)).astype(np.int32) for x in (positions, segments))
    return Where(*map(jnp.asarray, both))


def draw(seed: int, rows: int, length: int, heads: tuple[int, int, int], dtype=jnp.bfloat16):
    """Random q, k, v and cotangent."""
    H, K, h = heads
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, (rows, length, n, h), dtype) for key, n in zip(keys, (H, K, K, H), strict=True)]


def gradients(where: Where, causal: bool, window: int | None, implementation: str, q, k, v, d_out):
    """(output, gradients of q, k, v); padding is masked out of the output."""
    real = (where.segments > 0)[..., None, None]

    def out(q, k, v):
        options = {"causal": causal, "window": window, "implementation": implementation}
        return attention.attend(q, k, v, where, where, **options) * real.astype(q.dtype)

    y, pull = jax.vjp(out, q, k, v)
    return y, *pull(d_out)


def compare(mesh, case: str, shape: str, rows: int = 2, length: int = 1024) -> dict:
    causal, window, packed = CASES[case]
    where, arrays = places(rows, length, packed), draw(0, rows, length, HEADS[shape])

    def run(implementation, arrays):
        with sharding.use(mesh, Rules(), ParallelConfig()):
            fn = jax.jit(functools.partial(gradients, where, causal, window, implementation))
            compiled = fn.lower(*arrays).compile()
            return compiled(*arrays), "fmha" in compiled.as_text()

    with jax.default_matmul_precision("highest"):
        reference, _ = run("plain", [x.astype(jnp.float32) for x in arrays])
    found, fused = run("auto", arrays)
    plain, _ = run("plain", arrays)
    names = ("out", "dq", "dk", "dv")
    errors = {n: [error(a, r), error(b, r)] for n, a, b, r in zip(names, found, plain, reference, strict=True)}
    return {"case": case, "heads": shape, "cudnn": fused, "auto and plain": errors}


def error(x, reference) -> float:
    x, reference = (np.asarray(a, np.float64) for a in (x, reference))
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def milliseconds(fn, arrays, repeats: int = 10) -> float:
    """The median milliseconds of a call, including the wait for its result."""
    compiled, seconds = jax.jit(fn).lower(*arrays).compile(), []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def time_forms(mesh, heads: tuple[int, int, int], rows: int, length: int) -> dict:
    """Times forward and backward of `attend`, packed and not, and of JAX's cuDNN call without a
    mask."""
    arrays, found = draw(1, rows, length, heads), {}
    for name, packed in (("one document", False), ("packed", True)):
        with sharding.use(mesh, Rules(), ParallelConfig()):
            where = places(rows, length, packed)
            found[name] = milliseconds(functools.partial(gradients, where, True, None, "auto"), arrays)

    def bare(q, k, v, d_out):
        call = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
        y, pull = jax.vjp(call, q, k, v)
        return y, *pull(d_out)

    if jax.default_backend() == "gpu":
        found["without a mask"] = milliseconds(bare, arrays)
    H, _, h = heads
    # Two matrix products forward and five backward, each over half of the square, as the mask is
    # causal.
    flops = 7 * rows * H * length**2 * h
    return {"time": f"{rows} x {length}, heads {heads}", "ms": found, "flops": flops}


def main(what: str = "times, errors", rows: str = "4", length: str = "4096") -> None:
    mesh = sharding.make_mesh(ParallelConfig(), jax.devices()[:1])
    for heads in ((32, 8, 64), (16, 4, 128)) if "times" in what else ():
        print(json.dumps(time_forms(mesh, heads, int(rows), int(length))), flush=True)
    for shape in HEADS if "errors" in what else ():
        for case in CASES:
            print(json.dumps(compare(mesh, case, shape)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
