"""Every layout gives the one-device run: losses and parameters after 5 steps, and each array lies
where the rules say.

float32 sums in another order differ in the last bits; 5 AdamW steps at lr 1e-2 grow that to at most
about 1e-5 of a parameter (Adam divides by small second moments), which is the tolerance.
"""

import pytest
from jax.sharding import PartitionSpec as P

import layout_runs
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.training.state import init_state

SEQUENCE = Rules(residual_seq=("seq", "tensor"))
LAYOUTS = {
    "dp": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "tp": ParallelConfig(data=4, tensor=2),
    "fsdp_tp": ParallelConfig(data=2, fsdp=2, tensor=2),
    "hybrid": ParallelConfig(data=2, fsdp=4, slices=2),
    "tp_sequence": ParallelConfig(data=4, tensor=2, rules=SEQUENCE),
    "fsdp_tp_slices": ParallelConfig(data=2, fsdp=2, tensor=2, slices=2, rules=SEQUENCE),
    "pmap": ParallelConfig(data=8, strategy="pmap"),
}
# Quick: the decoder in two layouts that have every axis, and a network that is no stack of layers
# in one.
QUICK = {("llama", layout) for layout in ("fsdp_tp", "pmap")} | {("cnn_nnx", "fsdp")}
CNN = ("dp", "fsdp", "tp", "fsdp_tp", "pmap")
OTHERS = ("dp", "fsdp", "tp", "fsdp_tp", "hybrid", "tp_sequence")
CASES = dict.fromkeys(layout_runs.CASES, OTHERS) | {"llama": LAYOUTS, "cnn_nnx": CNN, "cnn_linen": CNN}
# Slow: the layout that cuts a kind of model in the most ways, and of the decoder each way of
# cutting once.
SLOW = {"fsdp_tp", "pmap"}
OF_LLAMA = {"hybrid", "tp_sequence", "fsdp_tp_slices"}


def marks(case: str, layout: str) -> list:
    if (case, layout) in QUICK:
        return []
    slow = layout in SLOW or (case == "llama" and layout in OF_LLAMA)
    return [pytest.mark.slow if slow else pytest.mark.exhaustive]


PAIRS = [pytest.param(case, layout, marks=marks(case, layout)) for case, layouts in CASES.items() for layout in layouts]


# Sums of one activation over `tensor`: per layer forward and backward, and outside the layers.
# Backward there is one for each product whose input the whole axis holds (q, k, v, gate, up): a
# CPU's compiler does not add them first, as a TPU's does. Where the sequence is cut between
# products there are six gathers per layer more (before each half of the layer, again in its
# backward pass, and of the gradient of each half's output), and two outside.
TENSOR_SUMS = {"llama": (2, 5, 2), "mixtral": (2, 5, 2), "bert": (2, 4, 4), "vit": (2, 4, 0)}
# Kernels that `tensor` leaves whole: where `fsdp` cuts them, the compiler spreads their products
# over `tensor` all the same. It permutes halves between the two axes and gathers over `tensor` what
# it would else gather over `fsdp`, so many times.
EXCHANGED = {
    "bert": {"mlm/dense/kernel": 3.5},
    "mixtral": {"layers/router/kernel": 3.5},
    "vit": {"patches/kernel": 2.0, "head/kernel": 1.0},
}
# Tables that are only looked up: where `tensor` does not cut them, their gradients are summed
# whole.
LOOKED_UP = ("positions/table", "token_types/table")


def owed(case: str, parallel: ParallelConfig) -> dict[str, tuple[float, str]] | None:
    """{mesh axis: (bytes, formula)}; None where it is not written down (a network without
    layers)."""
    if case not in TENSOR_SUMS or parallel.strategy == "pmap":
        return None
    config = layout_runs.config_of(case, parallel)
    mesh = sharding.make_mesh(parallel)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def local(wanted=lambda path, param, cut: True) -> int:
        return layout_runs.local_bytes(config, mesh, wanted)

    everything, cut = local(), local(lambda path, param, cut: cut)
    layers = local(lambda path, param, cut: cut and path.startswith("layers/"))
    tables = ("head/table", *(LOOKED_UP if tensor == 1 else ()))
    whole = local(lambda path, param, cut: cut and (path in tables or not param.decay))
    out = {}
    if mesh.shape["data"] > 1:
        uncut = everything - cut
        out["data"] = (
            (everything, "P")
            if fsdp == 1
            else (cut / fsdp + uncut + whole * (1 - 1 / fsdp), f"C/{fsdp} + (P - C) + S(1 - 1/{fsdp})")
        )
    if fsdp > 1:
        out["fsdp"] = (layers + cut + everything, "W + C + P")
    if case == "bert":
        # The tied table's two gradients, of the lookup and of the head, are summed apart and whole.
        table = local(lambda path, param, cut: path == "embed/table")
        out = {axis: (due + table, f"{formula} + T") for axis, (due, formula) in out.items()}
    if tensor > 1:
        forward, backward, rest = TENSOR_SUMS[case]
        per_layer = forward + backward
        if parallel.rules == SEQUENCE and case != "vit":  # five tokens, which two devices do not divide
            # A router in float32 reads the norm's output apart: one gather more.
            per_layer, rest = per_layer + (7 if case == "mixtral" else 6), rest + 2
        moves = per_layer * config.model.num_layers + rest
        due, formula = moves * layout_runs.activation_bytes(config, mesh), f"({per_layer} L + {rest}) A"
        if (
            case == "mixtral"
        ):  # what each expert's result counts for a token: its gradient, a part of which each device has
            due += 2 * config.model.num_layers * layout_runs.gate_bytes(config, mesh)
            formula += " + 2 L G"
        if fsdp > 1 and case in EXCHANGED:
            for own, times in EXCHANGED[case].items():
                size = local(lambda path, param, cut, own=own: path == own)
                assert size, own
                due, formula = due + times * size, f"{formula} + {times:g} K"
        out["tensor"] = (due, formula)
    return out


@pytest.mark.few("llama-fsdp_tp", "llama-hybrid", "mixtral-fsdp_tp", "cnn_nnx-pmap")
@pytest.mark.parametrize(("case", "layout"), PAIRS)
def test_layout_equals_one_device(case, layout, prove):
    prove(layout, case, LAYOUTS[layout], owed=owed(case, LAYOUTS[layout]))


@pytest.mark.few("fsdp_tp")
@pytest.mark.parametrize("layout", ["fsdp", "tp", "fsdp_tp"])
def test_live_arrays_lie_where_the_rules_say_before_the_first_step(layout):
    config = layout_runs.config_of("llama", LAYOUTS[layout])
    mesh = sharding.make_mesh(config.parallel)
    assert not layout_runs.not_cut(init_state(config, mesh), config, mesh)


def test_sharded_leaves_of_the_decoder_by_hand():
    """A few leaves are written out, as a check of the rules themselves."""
    config = layout_runs.config_of("llama", LAYOUTS["fsdp_tp"])
    state = init_state(config, sharding.make_mesh(config.parallel))
    got = {path: leaf.sharding.spec for path, leaf in params.paths(state.params).items()}
    assert got["layers/attn/q"] == P("stage", "fsdp", "tensor", None)
    assert got["layers/mlp/down"] == P("stage", "tensor", "fsdp")
    assert got["embed/table"] == P("tensor", "fsdp")
    shard = params.paths(state.params)["layers/attn/q"].addressable_shards[0].data
    assert shard.shape == (2, 16, 2, 8)
