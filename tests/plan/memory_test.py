"""What lives when, followed through a program's text."""

import jax
import jax.numpy as jnp
import pytest

from bigmodel_jax.plan.program import memory
from bigmodel_jax.plan.program.instructions import Code

# a and b live together, then b and c; d is written over b. The loop's carry is its caller's.
TEXT = """HloModule m, is_scheduled=true

FileNames
1 "/home/me/bigmodel_jax/models/llama.py"
2 "/home/me/.venv/lib/python3.12/site-packages/jax/x.py"

FunctionNames
1 "attend"

FileLocations
1 {file_name_id=1 function_name_id=1 line=109 end_line=109 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%body (p: (f32[256], s32[])) -> (f32[256], s32[]) {
  %p = (f32[256]{0}, s32[]) parameter(0)
  %x = f32[256]{0} get-tuple-element(%p), index=0
  %i = s32[] get-tuple-element(%p), index=1
  %inner = f32[1024]{0} broadcast(%x), dimensions={0}
  %y = f32[256]{0} reduce(%inner), dimensions={1}
  ROOT %t = (f32[256]{0}, s32[]) tuple(%y, %i)
}

%condition (p: (f32[256], s32[])) -> pred[] {
  %p = (f32[256]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  %n = s32[] constant(3)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[256]) -> f32[] {
  %x = f32[256]{0} parameter(0)
  %a = f32[256]{0} negate(%x), metadata={op_name="jit(step)/jvp()/neg" stack_frame_id=2}
  %b = f32[512]{0} broadcast(%a), metadata={op_name="jit(step)/jvp()/broadcast_in_dim" stack_frame_id=2}
  %i = s32[] constant(0)
  %carry = (f32[256]{0}, s32[]) tuple(%a, %i)
  %w = (f32[256]{0}, s32[]) while(%carry), condition=%condition, body=%body
  %x1 = f32[256]{0} get-tuple-element(%w), index=0
  %d = f32[512]{0} dynamic-update-slice(%b, %x1, %i)
  ROOT %r = f32[] reduce(%d), dimensions={0}
}
"""


def test_the_peak_is_where_most_lives_and_loops_add_what_they_make():
    found = memory.at_the_peak(Code(TEXT))
    # Inside the loop: a (the carry), b (needed afterwards), and the loop's own array.
    assert sorted(b.bytes for b in found) == [1024, 2048, 4096]


def test_stacked_results_of_the_forward_pass_are_activations_and_have_a_line():
    found = memory.summary(Code(TEXT))
    assert (found["activations"], found["gradients"], found["temporaries"]) == (2048, 0, 5120)
    rows = {row["shape"]: row for row in found["largest"]}
    assert rows["f32[512]"]["source"] == "models/llama.py:109", "the model's line, not the library's that it called"
    assert [row["bytes"] for row in found["largest"]] == sorted((r["bytes"] for r in found["largest"]), reverse=True)


def test_a_compiled_programs_peak_is_near_the_compilers_own():
    def step(ws, x):
        def loss(ws):
            return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0] ** 2)

        return jax.tree.map(lambda w, g: w - g, ws, jax.grad(loss)(ws))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 128, 128), (1024, 128))]
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes).compile()
    own = compiled.memory_analysis().temp_size_in_bytes
    found = sum(b.bytes for b in memory.at_the_peak(Code(compiled.as_text())))
    assert 0.6 * own < found < 1.4 * own


def test_a_start_without_operands_makes_a_buffer_of_its_own():
    line = "  %q = (f32[4096]{0}, u32[]{:S(2)}) call-start()\n"
    text = TEXT.replace("  %carry", line + "  %carry").replace("reduce(%d)", "reduce(%d, %q)")
    assert sorted(b.bytes for b in memory.at_the_peak(Code(text))) == [1024, 2048, 4096, 16384]


# A loop of two layers: it stacks what each starts from, and sums something up. Neither array has a
# name of its own.
LOOP = (
    TEXT[: TEXT.index("%body")]
    + """%body (p: (s32[], f32[2,256], f32[512], f32[2,128])) -> (s32[], f32[2,256], f32[512], f32[2,128]) {
  %p = (s32[], f32[2,256]{1,0}, f32[512]{0}, f32[2,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %stack = f32[2,256]{1,0} get-tuple-element(%p), index=1
  %sum = f32[512]{0} get-tuple-element(%p), index=2
  %w = f32[2,128]{1,0} get-tuple-element(%p), index=3
  %x = f32[1,256]{1,0} broadcast(%i), metadata={op_name="jit(step)/jvp()/while/body/add" stack_frame_id=2}
  %piece = f32[1,256]{1,0} bitcast(%x)
  %put = f32[2,256]{1,0} dynamic-update-slice(%stack, %piece, %i, %i), metadata={op_name="update.7"}
  %more = f32[512]{0} add(%sum, %sum), metadata={op_name="jit(step)/while/body/sum_gradients/add" stack_frame_id=2}
  ROOT %t = (s32[], f32[2,256]{1,0}, f32[512]{0}, f32[2,128]{1,0}) tuple(%i, %put, %more, %w)
}

%condition (p: (s32[], f32[2,256], f32[512], f32[2,128])) -> pred[] {
  %p = (s32[], f32[2,256]{1,0}, f32[512]{0}, f32[2,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(2)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (w: f32[2,128]) -> f32[] {
  %w = f32[2,128]{1,0} parameter(0), metadata={op_name="state.params['w']"}
  %i = s32[] constant(0)
  %empty = f32[2,256]{1,0} broadcast(%i), metadata={op_name="broadcast.311"}
  %zeros = f32[512]{0} custom-call(), custom_call_target="AllocateBuffer"
  %copy = f32[2,128]{1,0} copy(%w)
  %carry = (s32[], f32[2,256]{1,0}, f32[512]{0}, f32[2,128]{1,0}) tuple(%i, %empty, %zeros, %copy)
  %loop = (s32[], f32[2,256]{1,0}, f32[512]{0}, f32[2,128]{1,0}) while(%carry), condition=%condition, body=%body
  %out = f32[2,256]{1,0} get-tuple-element(%loop), index=1
  %outs = f32[512]{0} get-tuple-element(%loop), index=2
  ROOT %r = f32[] reduce(%out, %outs), dimensions={0,1}
}
"""
)


def test_an_array_without_a_name_is_named_by_what_a_loop_writes_into_it():
    found = {b.shape: b for b in memory.at_the_peak(Code(LOOP))}
    stack, total, copied = (found[shape] for shape in ("f32[2,256]", "f32[512]", "f32[2,128]"))
    assert (stack.operation, stack.kind) == ("jit(step)/jvp()/while/body/add", "activations")
    assert (total.operation, total.kind) == ("jit(step)/while/body/sum_gradients/add", "gradients")
    assert (copied.operation, copied.kind) == ("state.params['w']", "temporaries"), (
        "it is only read: what it is a copy of"
    )


def test_the_end_of_a_pair_gives_what_its_start_made():
    """The operands of the start are needed no longer than the end, and they are not made again."""
    text = TEXT.replace(
        "  %d = f32[512]{0} dynamic-update-slice(%b, %x1, %i)",
        """  %s = ((f32[512]{0}, s32[]), f32[128]{0}, u32[]) dynamic-slice-start(%b, %i)
  %piece = f32[128]{0} dynamic-slice-done(%s)
  %late = f32[8192]{0} broadcast(%piece)
  %d = f32[512]{0} reduce(%late)""",
    )
    # At its worst moment the last broadcast and its sum: b and the piece are gone.
    assert sorted(b.bytes for b in memory.at_the_peak(Code(text))) == [2048, 32768]


# ---- exact programs, a rule each ----
def peak(entry: str, *computations: str) -> list[int]:
    """Bytes of what lives at the worst moment, sorted; lines of ENTRY, whose %x is 4 KiB given by
    the caller."""
    lines = "\n".join(f"  {line}" for line in entry.strip().splitlines())
    head = "HloModule m, is_scheduled=true\n"
    text = "\n\n".join([head, *computations, f"ENTRY %main (x: f32[1024]) -> f32[] {{\n{lines}\n}}\n"])
    return sorted(b.bytes for b in memory.at_the_peak(Code(text)))


ARGUMENT = "%x = f32[1024]{0} parameter(0)\n%i = s32[] constant(0)\n"


def branch(name: str, number: int) -> str:
    """A computation that makes one array of so many numbers on its way from 4 KiB to 4 KiB."""
    return f"""%{name} (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  %wide = f32[{number}]{{0}} broadcast(%p), dimensions={{0}}
  ROOT %back = f32[1024]{{0}} reduce(%wide), dimensions={{0}}
}}"""


@pytest.mark.parametrize(
    "named",
    [
        "branch_computations={%narrow, %wide}",
        "branch_computations={%wide, %narrow}",
        "true_computation=%narrow, false_computation=%wide",
        "true_computation=%wide, false_computation=%narrow",
    ],
)
def test_of_a_conditional_the_largest_branch_lives_and_its_result_has_its_arguments_place(named):
    entry = f"""{ARGUMENT}%a = f32[1024]{{0}} negate(%x)
%c = f32[1024]{{0}} conditional(%i, %a, %a), {named}
%late = f32[512]{{0}} slice(%c)
ROOT %r = f32[] reduce(%late)"""
    assert peak(entry, branch("narrow", 2048), branch("wide", 8192)) == [4096, 32768], "a, and the wide branch's array"


def test_what_a_called_computation_makes_lives_while_it_runs():
    entry = f"{ARGUMENT}%a = f32[1024]{{0}} call(%x), to_apply=%wide\nROOT %r = f32[] reduce(%a)"
    assert peak(entry, branch("wide", 8192)) == [4096, 32768]


FUSED = """%fused (p0: f32[256], p1: f32[1024], p2: s32[]) -> f32[1024] {
  %p0 = f32[256]{0} parameter(0)
  %p1 = f32[1024]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %whole = f32[1024]{0} bitcast(%p1)
  %put = f32[1024]{0} dynamic-update-slice(%whole, %p0, %p2)
  ROOT %out = f32[1024]{0} bitcast(%put)
}"""
TWO = """%two (p0: f32[1024], p1: f32[256]) -> (f32[256], f32[1024]) {
  %p0 = f32[1024]{0} parameter(0)
  %p1 = f32[256]{0} parameter(1)
  %i = s32[] constant(0)
  %n = f32[256]{0} negate(%p1)
  %put = f32[1024]{0} dynamic-update-slice(%p0, %p1, %i)
  ROOT %t = (f32[256]{0}, f32[1024]{0}) tuple(%n, %put)
}"""


@pytest.mark.parametrize(
    ("update", "computations", "bytes_"),
    [
        ("%d = f32[1024]{0} dynamic-update-slice(%a, %p, %i)", (), [1024, 2048, 4096]),
        ("%d = f32[1024]{0} fusion(%p, %a, %i), kind=kLoop, calls=%fused", (FUSED,), [1024, 2048, 4096]),
        ("%d = f32[1024]{0} custom-call(%p, %a), output_to_operand_aliasing={{}: (1, {})}", (), [1024, 2048, 4096]),
        ("%d = f32[1024]{0} custom-call(%a, %p), output_to_operand_aliasing={{}: (0, {})}", (), [1024, 2048, 4096]),
        ("%d = f32[1024]{0} opt-barrier(%a)", (), [1024, 2048, 4096]),
        ("%d = f32[1024]{0} add(%a, %p)", (), [1024, 4096, 4096]),
        ("%d = f32[1024]{0} custom-call(%p, %a)", (), [1024, 4096, 4096]),
        (
            (
                "%t = (f32[256]{0}, f32[1024]{0}) fusion(%a, %p), kind=kLoop, calls=%two\n"
                "%n = f32[256]{0} get-tuple-element(%t), index=0\n%d = f32[1024]{0} get-tuple-element(%t), index=1"
            ),
            (TWO,),
            [1024, 1024, 2048, 4096],
        ),
        (
            (
                "%t = (f32[1024]{0}, f32[256]{0}) custom-call(%p, %a), output_to_operand_aliasing={{0}: (1, {})}\n"
                "%d = f32[1024]{0} get-tuple-element(%t), index=0\n%n = f32[256]{0} get-tuple-element(%t), index=1"
            ),
            (),
            [1024, 1024, 2048, 4096],
        ),
    ],
)
def test_what_is_written_over_an_operand_takes_no_room_and_anything_else_does(update, computations, bytes_):
    """a has 4 KiB, and p, which is written into it, 1 KiB. d, which a has become, is read beside p
    and a later array of 2 KiB."""
    more = ", %n" if "%n" in update else ""
    entry = f"""{ARGUMENT}%p = f32[256]{{0}} slice(%x)
%a = f32[1024]{{0}} negate(%x)
{update}
%late = f32[512]{{0}} slice(%x)
ROOT %r = f32[] reduce(%d, %p, %late{more})"""
    assert peak(entry, *computations) == bytes_


def test_an_array_dies_with_its_last_reader_and_a_result_is_its_callers():
    entry = f"""{ARGUMENT}%a = f32[2048]{{0}} broadcast(%x)
%b = f32[1024]{{0}} reduce(%a)
%c = f32[4096]{{0}} broadcast(%b)
ROOT %r = f32[1024]{{0}} reduce(%c)"""
    assert peak(entry) == [4096, 16384], "b and c: a is gone before c, and r lies where the caller keeps it"


FORWARD, BACKWARD = "jit(step)/jvp()", "jit(step)/transpose(jvp())"


@pytest.mark.parametrize(
    ("operation", "stacked", "kind"),
    [
        (f"{FORWARD}/while/body/add", True, "activations"),
        (f"{BACKWARD}/while/body/add", True, "gradients"),
        (f"{FORWARD}/while/body/add", False, "temporaries"),
        (f"{BACKWARD}/while/body/add", False, "temporaries"),
        ("jit(step)/while/body/add", True, "temporaries"),
        *(
            (f"{FORWARD}/{last}", False, "activations")
            for last in ("broadcast_in_dim", "while", "dynamic_update_slice")
        ),
        *((f"{BACKWARD}/{last}", False, "gradients") for last in ("broadcast_in_dim", "while", "dynamic_update_slice")),
        (f"{FORWARD}/sum_gradients/add", False, "gradients"),
        (f"{BACKWARD}/save_activations/add", False, "activations"),
    ],
)
def test_what_a_buffer_is_for(operation, stacked, kind):
    assert memory.Buffer(1, "f32[1]", operation, 0, stacked).kind == kind


def test_what_the_backward_pass_stacks_are_gradients():
    text = LOOP.replace("jit(step)/jvp()/while/body/add", "jit(step)/transpose(jvp())/while/body/add")
    found = memory.summary(Code(text))
    assert found["gradients"] == 2 * 256 * 4 + 512 * 4, "the stack of two layers, and the sum that names itself"
    assert found["activations"] == 0


def test_equal_buffers_are_one_row_with_their_number():
    entry = f"""{ARGUMENT}%a = f32[2048]{{0}} broadcast(%x)
%b = f32[2048]{{0}} broadcast(%x)
ROOT %r = f32[] reduce(%a, %b)"""
    text = f"HloModule m, is_scheduled=true\n\nENTRY %main (x: f32[1024]) -> f32[] {{\n{entry}\n}}\n"
    (row,) = memory.summary(Code(text))["largest"]
    assert (row["bytes"], row["shape"]) == (16384, "f32[2048] x 2")


def test_scalars_are_no_largest_buffers():
    entry = f"""{ARGUMENT}%a = f32[2048]{{0}} broadcast(%x)
%s = f32[] reduce(%a)
%t = f32[1,1]{{1,0}} broadcast(%s)
ROOT %r = f32[] reduce(%a, %s, %t)"""
    text = f"HloModule m, is_scheduled=true\n\nENTRY %main (x: f32[1024]) -> f32[] {{\n{entry}\n}}\n"
    assert [row["shape"] for row in memory.summary(Code(text))["largest"]] == ["f32[2048]"]


def test_an_operation_is_read_without_the_wrappers():
    assert memory.readable("jit(step)/while/body/closed_call/layer/attend/dot_general") == "attend/dot_general"
    assert memory.readable("jit(step)/checkpoint/rematted_computation/exp") == "exp"
