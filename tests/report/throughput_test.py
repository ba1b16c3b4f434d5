import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, peaks
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import Compute, Gemma3Config, GptOssConfig, LlamaConfig, MistralConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.plan.chips import CHIPS
from bigmodel_jax.report import throughput
from bigmodel_jax.report.throughput import Throughput, count_flops, peak_flops, step_flops


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mlp(x, w, v):
    return jax.nn.gelu(x @ w) @ v


MLP = (array(8, 16), array(16, 32), array(32, 16))
MLP_FLOPS = 2 * 8 * 16 * 32 * 2


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.custom_vjp], ids=lambda w: w.__name__)
def test_an_mlp_counts_the_same_however_it_is_wrapped(wrap):
    fn = wrap(mlp)
    if isinstance(fn, jax.custom_vjp):
        fn.defvjp(lambda *args: (mlp(*args), args), lambda args, g: args)
    assert count_flops(fn, *MLP) == MLP_FLOPS


def test_the_gradient_of_a_product_costs_twice_the_forward_pass():
    loss = jax.value_and_grad(lambda x, w: jnp.sum((x @ w) ** 2), argnums=(0, 1))
    assert count_flops(loss, array(8, 16), array(16, 32)) == 3 * 2 * 8 * 16 * 32


def test_attention_is_two_products_over_the_full_square():
    b, t, h, d = 2, 12, 4, 8
    q = array(b, t, h, d)
    assert count_flops(lambda q: jax.nn.dot_product_attention(q, q, q, is_causal=True), q) == 2 * 2 * b * h * t * t * d


def test_a_scan_counts_its_body_times_its_length():
    def fn(x, stacked):
        return jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, stacked)[0]

    assert count_flops(fn, array(8, 16), array(5, 16, 16)) == 5 * 2 * 8 * 16 * 16


def test_a_product_that_nothing_depends_on_is_not_counted():
    model = jax.jit(lambda x, w: (x @ w, x))
    assert count_flops(lambda x, w: model(x, w)[1].sum(), array(8, 16), array(16, 32)) == 0


def test_a_convolution_with_groups():
    def fn(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=2)

    assert count_flops(fn, array(3, 10, 10, 4), array(5, 5, 2, 6)) == 2 * 3 * 10 * 10 * 6 * 5 * 5 * 2


def test_of_a_cond_the_costliest_branch_counts_and_of_a_while_one_turn():
    def fn(x, w):
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: x @ w @ w, x)
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

    assert count_flops(fn, array(8, 16), array(16, 16)) == 3 * 2 * 8 * 16 * 16


def test_a_shard_map_counts_all_its_devices():
    mesh = Mesh(jax.devices()[:4], ("data",))
    fn = jax.shard_map(mlp, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"))
    assert count_flops(fn, *MLP) == MLP_FLOPS


def flops(model, rows, length):
    """FLOPs of a training step on `rows` x `length` tokens."""
    kinds = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), "int32") | {"weights": "float32"}
    batch = {name: jax.ShapeDtypeStruct((rows, length), kind) for name, kind in kinds.items()}
    return step_flops(Config(model, NextToken(), DataConfig()), params.abstract(model.make().spec), batch)


def test_a_step_is_three_times_the_forward_pass():
    """Llama.tiny has 2 layers of 9,216 weights and a head of 2,048. A query has 8 keys of 32
    dimensions, twice, in each layer."""
    per_token = 2 * 9216 + 2048 + 2 * (2 * 8 * 32)
    assert flops(LlamaConfig.tiny(), rows=2, length=8) == 3 * 2 * 16 * per_token == 2_064_384


@pytest.mark.parametrize(
    ("model", "seen", "dim"),
    [
        (MistralConfig.tiny(), [5, 5], 32),
        (dataclasses.replace(MistralConfig.tiny(), window=16), [16, 16], 32),
        (dataclasses.replace(MistralConfig.tiny(), window=99), [16, 16], 32),
        (dataclasses.replace(MistralConfig.tiny(), window=0), [16, 16], 32),
        (Gemma3Config.tiny(), [4, 16, 4], 32),
        (GptOssConfig.tiny(), [4, 16], 32),
    ],
)
def test_a_window_counts_the_keys_that_a_query_sees(model, seen, dim):
    """A row has 16 tokens. `seen` is the number of keys per query in each layer, and `dim` is that
    of all heads together."""
    everything = flops(dataclasses.replace(model, window=16), rows=2, length=16)
    hidden = sum(16 - n for n in seen)
    assert everything - flops(model, rows=2, length=16) == 3 * 2 * 2 * (2 * 16) * hidden * dim


def test_a_last_block_that_is_not_full_is_no_useful_work():
    model = dataclasses.replace(LlamaConfig.tiny(), max_seq_len=4096)
    counted = {
        flops(dataclasses.replace(model, compute=Compute(attention=a)), 1, 2500) for a in ("auto", "chunked", "plain")
    }
    assert counted == {3 * 2 * 2500 * (2 * 9216 + 2048 + 2 * (2 * 2500 * 32))}


def test_plan_and_mfu_read_one_table():
    for chip in CHIPS:
        device = types.SimpleNamespace(device_kind=chip.kind, platform="gpu")
        for dtype in ("bfloat16", "float32"):
            assert chip.peak(dtype) == peak_flops([device], dtype)[0]


def test_every_row_of_the_table_can_be_found():
    for row in peaks.PEAKS:
        assert peaks.find(row.part) == row, f"an earlier row hides {row.part}"


@pytest.mark.parametrize(
    ("kind", "dtype", "tflops"),
    [
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v5p", "float32", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("NVIDIA A100-SXM4-80GB", "float32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "float16", 989.4),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA GB200", "bfloat16", 2500),
        ("NVIDIA B300 SXM6 AC", "bfloat16", 2250),
        ("NVIDIA B300 SXM6 AC", "float32", 1125),
        ("NVIDIA GB300", "bfloat16", 2500),
        ("NVIDIA GB300", "float32", 1250),
        ("TPU7x", "bfloat16", 2307 / 2),
        ("TPU v3", "bfloat16", 123 / 2),
        ("NVIDIA L40S", "float32", 183),
        ("NVIDIA L4", "bfloat16", 121),
    ],
)
def test_known_devices_have_the_data_sheets_figure(kind, dtype, tflops):
    device = types.SimpleNamespace(device_kind=kind, platform="gpu")
    assert peak_flops([device], dtype) == (tflops * 1e12, f"{kind} data sheet")


def test_an_unknown_accelerator_is_measured_whole(monkeypatch):
    monkeypatch.setattr(throughput, "_measured_peak", lambda platform, dtype: 8e9)
    device = types.SimpleNamespace(device_kind="Abacus 9000", platform="abacus")
    assert peak_flops([device], "bfloat16") == (8e9, "measured matmul peak")


def test_virtual_cpu_devices_share_the_measured_machine(monkeypatch):
    monkeypatch.setattr(throughput, "_measured_peak", lambda platform, dtype: 8e9)
    assert peak_flops(jax.devices("cpu"), "float32") == (8e9 / len(jax.devices("cpu")), "measured matmul peak")


def test_the_measurement_is_of_a_plausible_size():
    assert 1e8 < throughput._measured_peak("cpu", "float32", seconds=0.05) < 1e15


def test_rates_are_means_over_the_window():
    rates = Throughput(flops_per_step=50.0, peak=100.0, window=2)
    assert rates.rates(10) == {}
    for seconds, wait in ((100.0, 9.0), (1.0, 0.25), (3.0, 0.75)):
        rates.record(seconds, wait)
    assert rates.rates(10) == {"tokens_per_second": 5.0, "mfu": 0.25, "step_seconds": 2.0, "data_wait_seconds": 0.5}
