"""FLOPs and bytes counted in compiled programs against what the shapes say."""

import jax
import jax.numpy as jnp
import pytest

from bigmodel_jax.plan.program import cost, instructions
from bigmodel_jax.plan.program.instructions import Code
from bigmodel_jax.report.throughput import count_flops


def compiled(fn, *shapes) -> Code:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Code(jax.jit(fn).lower(*arguments).compile().as_text())


def measure(code: Code) -> cost.Cost:
    return cost.measure(code, lambda dtype: 1e12, 1e9)


def layers(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0].sum()


@pytest.mark.parametrize("unroll", [1, 5])
def test_a_loops_body_counts_as_often_as_it_runs(unroll):
    code = compiled(
        lambda x, ws: jax.lax.scan(lambda x, w: (x @ w, None), x, ws, unroll=unroll)[0], (16, 32), (5, 32, 32)
    )
    assert sum(measure(code).flops.values()) == 5 * 2 * 16 * 32 * 32


def test_forward_and_backward_are_three_times_forward_as_the_jaxpr_counts_them():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 32), (5, 32, 32))]
    forward = count_flops(layers, *shapes)
    both = sum(measure(compiled(jax.grad(layers, argnums=(0, 1)), (16, 32), (5, 32, 32))).flops.values())
    assert both == 3 * forward == 3 * 5 * 2 * 16 * 32 * 32


def test_a_tpus_products_are_convolutions_and_places_outside_do_not_count():
    # (2, 1024, 256) x (256, 2, 64), heads as a spatial axis: window 2, padded by 1, reversed: half
    # of it is empty.
    one = instructions.parse(
        "ROOT %c = bf16[2,1024,2,64,1]{1,3,4,2,0:T(8,128)(2,1)S(1)} convolution(%lhs, %rhs), "
        "window={size=1x2x2 pad=0_0x1_1x0_0 rhs_reversal=0x1x0}, dim_labels=0b2f1_2i1o0->0b1f2"
    )
    lhs, rhs = "bf16[2,1024,2,128,1]", "bf16[2,128,2,64,1]"
    assert instructions._convolution(one, lhs, rhs) == 2.0 * 2 * 1024 * (2 * 128) * (2 * 64)


def test_a_plain_convolution_without_padding_counts_every_place():
    code = compiled(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), (2, 3, 8, 8), (5, 3, 3, 3))
    assert sum(measure(code).flops.values()) == 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)


def test_the_slices_that_a_loop_reads_of_a_stack_are_the_whole_stack_once():
    stack = 64 * 256 * 256 * 4
    code = compiled(lambda x, ws: jax.lax.scan(lambda x, w: (x * w, None), x, ws)[0], (256, 256), (64, 256, 256))
    # The stack once; the carry read and written in each of 64 rounds.
    assert stack < measure(code).bytes < 4.5 * stack


def test_memory_of_other_places_is_not_hbm():
    assert instructions.memory_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert instructions.memory_bytes("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}") == 0
    assert instructions.memory_bytes("(f32[4]{0:S(1)}, f32[4]{0}, u32[]{:S(2)})") == 16


def test_an_instruction_is_taken_apart():
    one = instructions.parse(
        "ROOT %f.1 = (f32[2,3]{1,0:T(2,128)}, s32[]) fusion(%a.2, s32[4]{0:T(128)} %b), kind=kLoop, calls=%body.3, "
        'metadata={op_name="jit(step)/jvp()/while/body/dot_general" stack_frame_id=17}'
    )
    assert (one.name, one.opcode, one.operands, one.root) == ("f.1", "fusion", ("a.2", "b"), True)
    assert one.result == "(f32[2,3]{1,0:T(2,128)}, s32[])"
    assert one.attribute("calls") == "%body.3"
    assert one.op_name == "jit(step)/jvp()/while/body/dot_general"


def test_a_kernel_counts_what_its_author_states():
    one = instructions.parse(
        '%k = bf16[8,64]{1,0} custom-call(%q), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config":{"cost_estimate":{"flops":"1234","transcendentals":"0"}}}'
    )
    assert instructions._kernel(one, ["bf16[8,64]{1,0}"], causal=True) == (1234.0, "bf16")


def test_flash_attention_counts_the_blocks_that_it_visits():
    """There are 8 heads of 2 rows and 2,048 queries and keys in 4 blocks of 512. A causal mask
    visits 10 of the 16 blocks."""
    names = ["fwd_segmented_residuals", "dq_segmented", "dkv_segmented"]
    shapes = [
        "s8[4,4]{1,0}",
        "bf16[2,8,2048,128]{3,2,1,0}",
        "bf16[2,4,2048,128]{3,2,1,0}",
        "bf16[2,4,2048,64]{3,2,1,0}",
    ]
    pairs = 2 * 8 * 2048 * 2048
    widths = {"fwd": 128 + 64, "dq": 2 * 128 + 64, "dkv": 2 * 128 + 2 * 64}
    for name in names:
        one = instructions.parse(
            f"%splash_mha_{name}.3 = bf16[2]{{0}} custom-call(%q), custom_call_target=tpu_custom_call"
        )
        phase = name.split("_")[0]
        assert instructions._kernel(one, shapes, causal=False)[0] == 2 * pairs * widths[phase]
        assert instructions._kernel(one, shapes, causal=True)[0] == 2 * pairs * widths[phase] * 10 / 16


def test_grouped_products_count_as_one_product_of_all_rows():
    def grouped(x, w):
        return jax.lax.ragged_dot(x, w, jnp.array([10, 22], jnp.int32))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((32, 8), (2, 8, 16))]
    assert count_flops(grouped, *shapes) == 2 * 32 * 8 * 16
    both = jax.grad(lambda x, w: jnp.sum(grouped(x, w) ** 2), argnums=(0, 1))
    assert count_flops(both, *shapes) == 3 * 2 * 32 * 8 * 16


def test_places_between_the_elements_of_a_spread_input_do_not_count():
    """The reference tries every pair, for a few windows that a TPU's batched products use."""
    for size, n, stride, spread, pad in (
        (4, 4, 3, 4, 0),
        (8, 8, 7, 8, 0),
        (5, 3, 1, 2, 2),
        (6, 2, 2, 3, 1),
        (7, 3, 1, 1, 1),
    ):
        out = (size - 1) * spread // stride + 1
        window = {"size": str(n), "stride": str(stride), "pad": f"{pad}_{pad}", "lhs_dilate": str(spread)}
        places = [o * stride + k - pad for k in range(n) for o in range(out)]
        meant = sum(0 <= a <= (size - 1) * spread and a % spread == 0 for a in places)
        assert instructions._places(window, 0, size, out) == meant


NESTED = """HloModule step, num_partitions=1

%inner (a: bf16[64,256,256], i: s32[]) -> bf16[256,256] {
  %a = bf16[64,256,256]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,256,256]{2,1,0} dynamic-slice(%a, %i, %zero, %zero), dynamic_slice_sizes={1,256,256}
  ROOT %layer = bf16[256,256]{1,0} bitcast(%slice)
}

%outer (w: bf16[256,256], stack: bf16[64,256,256], n: s32[]) -> bf16[256,256] {
  %w = bf16[256,256]{1,0} parameter(0)
  %stack = bf16[64,256,256]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  %x = bf16[256,256]{1,0} fusion(%stack, %n), kind=kLoop, calls=%inner
  ROOT %y = bf16[256,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (w.1: bf16[256,256], stack.1: bf16[64,256,256], n.1: s32[]) -> bf16[256,256] {
  %w.1 = bf16[256,256]{1,0} parameter(0)
  %stack.1 = bf16[64,256,256]{2,1,0} parameter(1)
  %n.1 = s32[] parameter(2)
  ROOT %out = bf16[256,256]{1,0} fusion(%w.1, %stack.1, %n.1), kind=kOutput, calls=%outer
}
"""


def test_a_slice_that_a_fusion_inside_a_fusion_takes_is_no_more_than_the_slice():
    assert measure(Code(NESTED)).bytes == 3 * 256 * 256 * 2 + 4  # layer, weight and result, and the layer's number


def test_a_stack_in_another_layout_inside_a_fusion_is_no_more_than_the_slice_of_it():
    """A TPU's compiler gives the stack of packed weights another tile before it takes a layer of
    it."""
    aliasing = "output_to_operand_aliasing={{}: (0, {})}"
    again = f"  %again = bf16[64,256,256]{{2,1,0}} fusion(%a), kind=kLoop, {aliasing}, calls=%copied\n"
    copied = (
        "%copied (b: bf16[64,256,256]) -> bf16[64,256,256] {\n  %b = bf16[64,256,256]{2,1,0} parameter(0)\n"
        "  ROOT %c = bf16[64,256,256]{2,1,0} copy(%b)\n}\n\n"
    )
    text = NESTED.replace("dynamic-slice(%a,", "dynamic-slice(%again,").replace("  %slice =", f"{again}  %slice =")
    text = text.replace("%inner (a", f"{copied}%inner (a")
    assert measure(Code(text)).bytes == 3 * 256 * 256 * 2 + 4


def test_an_operand_that_a_fusion_inside_a_fusion_gives_another_name_is_read():
    """A TPU's compiler does this with the table of a head, before the product that reads it."""
    renamed = (
        "%renamed (b: bf16[256,256]) -> bf16[256,256] {\n  %b = bf16[256,256]{1,0} parameter(0)\n"
        "  ROOT %c = bf16[256,256]{1,0} bitcast(%b)\n}\n\n"
    )
    other = "  %v = bf16[256,256]{1,0} fusion(%w), kind=kLoop, calls=%renamed\n"
    text = NESTED.replace("convolution(%x, %w)", "convolution(%x, %v)").replace("  ROOT %y", f"{other}  ROOT %y")
    assert measure(Code(text.replace("%inner (a", f"{renamed}%inner (a"))).bytes == 3 * 256 * 256 * 2 + 4


def test_rows_that_a_fusion_looks_up_are_no_more_than_the_rows():
    text = NESTED.replace("dynamic-slice(%a, %i, %zero, %zero), dynamic_slice_sizes={1,256,256}",
                          "gather(%a, %i), offset_dims={0,1,2}, slice_sizes={1,256,256}")  # fmt: skip
    assert measure(Code(text)).bytes == 3 * 256 * 256 * 2 + 4


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[80,256,32]{2,1,0:T(8,128)}", 80 * 256 * 128 * 4),  # 32 of 128 places in a row
        ("f32[80,256,32]{1,2,0:T(8,128)}", 80 * 256 * 32 * 4),  # the same numbers the other way round fill their tiles
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),
        ("s32[]{:T(128)}", 4),
    ],
)
def test_tiles_are_filled_up(shape, size):
    assert instructions.memory_bytes(shape) == size


def test_an_overlapped_slice_of_the_hosts_memory_moves_its_piece_once():
    text = """ENTRY %main (x: f32[9,128], i: s32[]) -> f32[1,128] {
  %x = f32[9,128]{1,0:S(5)} parameter(0)
  %i = s32[] parameter(1)
  %s = ((f32[9,128]{1,0:S(5)}, s32[]), f32[1,128]{1,0}, u32[]{:S(2)}) dynamic-slice-start(%x, %i), dynamic_slice_sizes={1,128}
  ROOT %d = f32[1,128]{1,0} dynamic-slice-done(%s)
}
"""
    assert measure(Code("HloModule m\n" + text)).bytes == 512
    assert measure(Code("HloModule m\n" + text.replace(":S(5)", ""))).bytes == 1024


def test_an_overlapped_fusion_that_writes_a_slice_moves_the_slice():
    text = """%put (a: f32[9,128], u: f32[1,128], i: s32[]) -> f32[9,128] {
  %a = f32[9,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[9,128]{1,0} dynamic-update-slice(%a, %u, %i, %i)
}

ENTRY %main (a: f32[9,128], u: f32[1,128], i: s32[]) -> f32[9,128] {
  %a = f32[9,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %s = ((f32[9,128]{1,0}, f32[1,128]{1,0}, s32[]), f32[9,128]{1,0}, u32[]) fusion-start(%a, %u, %i), kind=kLoop, calls=%put
  ROOT %d = f32[9,128]{1,0} fusion-done(%s)
}
"""
    assert measure(Code("HloModule m\n\n" + text)).bytes == 2 * 512 + 4


def test_of_a_conditional_one_branch_counts():
    def fn(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: jnp.tanh(x @ w) @ w, lambda: x @ w)

    assert sum(measure(compiled(fn, (16, 32), (32, 32))).flops.values()) == 2 * 2 * 16 * 32 * 32


STATED = """%product (a: f32[16,32], b: f32[32,64]) -> f32[16,64] {
  %a = f32[16,32]{1,0} parameter(0)
  %b = f32[32,64]{1,0} parameter(1)
  ROOT %d = f32[16,64]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sum (a: f32[16,64]) -> f32[16,64] {
  %a = f32[16,64]{1,0} parameter(0)
  ROOT %s = f32[16,64]{1,0} add(%a, %a)
}

ENTRY %main (a: f32[16,32], b: f32[32,64]) -> f32[16,64] {
  %a = f32[16,32]{1,0} parameter(0)
  %b = f32[32,64]{1,0} parameter(1)
  %p = f32[16,64]{1,0} fusion(%a, %b), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"CYCLES"}
  ROOT %r = f32[16,64]{1,0} fusion(%p), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"900000"}
}
"""


@pytest.mark.parametrize(
    ("cycles", "clock", "product"),
    [(30_000, 1e9, 30e-6), (3_000, 1e9, 0.0), (30_000, 0.0, 0.0), (2**63 - 1, 1e9, 0.0)],
    ids=["longer than memory takes", "shorter", "of a chip without cycles", "not known"],
)
def test_a_product_takes_what_the_compiler_states_where_that_is_longer(cycles, clock, product):
    code = Code("HloModule m\n\n" + STATED.replace("CYCLES", str(cycles)))
    found = cost.measure(code, lambda dtype: 1e12, 1e9, clock)
    by_memory = 4e-9 * (16 * 32 + 32 * 64 + 16 * 64), 4e-9 * 2 * 16 * 64
    assert found.busy == pytest.approx(sum(by_memory))
    assert found.expected == pytest.approx(max(product, by_memory[0]) + by_memory[1])


SERVED = """HloModule m

ENTRY %main (a: f32[256,1024], b: f32[256,1024]) -> f32[1024,256] {
  %a = f32[256,1024]{1,0} parameter(0)
  %b = f32[256,1024]{1,0} parameter(1)
  %start = (f32[256,1024]{1,0:S(1)}, f32[256,1024]{1,0}, u32[]) copy-start(%b)
  %done = f32[256,1024]{1,0:S(1)} copy-done(%start)
  %sum = f32[256,1024]{1,0:S(1)} add(%done, %done), backend_config={"estimated_cycles":"1000"}
  ROOT %turned = f32[1024,256]{0,1} copy(%a), backend_config={"estimated_cycles":"CYCLES"}
}
"""


@pytest.mark.parametrize(("cycles", "expected"), [(9000, 10e-3), (500, 3.0 * 2**20 / 1e9)])
def test_a_servers_instructions_take_what_the_compiler_states_and_no_less_than_the_memory(cycles, expected):
    """The asynchronous copy overlaps with the others. In a plan of training, estimates count for
    products alone."""
    code = Code(SERVED.replace("CYCLES", str(cycles)))
    found, training = (cost.measure(code, lambda kind: 1e12, 1e9, 1e6, every=every) for every in (True, False))
    assert found.expected == pytest.approx(expected, rel=1e-5)
    assert training.expected == training.busy == pytest.approx(3.0 * 2**20 / 1e9, rel=1e-5)
