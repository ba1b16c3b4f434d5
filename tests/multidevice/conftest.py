"""The fixture by which every layout is proved, whatever file its test stands in."""

import jax
import numpy as np
import pytest

import layout_runs
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig


@pytest.fixture
def note(record_property):
    """note(layout, case, parallel, loss, weight, moved=()): one row of the table of layouts.

    loss, weight: largest relative difference of the losses and largest of the parameters, from
    those of one device, or None; moved: (mesh axis, bytes, bytes owed, formula) of what a step
    moves.
    """

    def row(layout, case, parallel, loss=None, weight=None, moved=()):
        numbers = (None if x is None else float(x) for x in (loss, weight))
        record_property("layout", (layout, case, parallel_text(parallel), *numbers, list(moved)))

    return row


@pytest.fixture
def prove(note):
    """prove(layout, case, parallel, owed=None, **model fields): asserts that a layout is the
    one-device run.

    layout: its name in the table; case: a key of layout_runs.CASES. Losses of 5 steps to 2e-6,
    gradient norms to 1e-5 relative, parameters to 2e-5; every parameter and moment lies where the
    rules say. Other tolerances: `losses`, `weights`. owed: {mesh axis: (bytes, formula)} of what
    one step has to move over it, held against the compiled program within `within` (5 %); over an
    axis that is not named nothing may move.
    """

    def check(layout, case, parallel, *, owed=None, losses=2e-6, weights=2e-5, within=0.05, **model):
        config = layout_runs.config_of(case, parallel, **model)
        base = layout_runs.one_device(layout_runs.config_of(case, ParallelConfig(data=1), **model), case)
        got = layout_runs.run(config, case, jax.device_count())
        loss = np.abs(got.losses / base.losses - 1).max()
        weight = max(
            np.abs(np.asarray(leaf) - params.paths(one)[path]).max()
            for tree, one in zip((got.state.params, got.state.frozen), base.state, strict=True)
            for path, leaf in params.paths(tree).items()
        )
        moved = layout_runs.moved(config, case, owed) if owed else []
        note(layout, case, parallel, loss, weight, moved)
        print(layout, case, f"loss {loss:.1e} parameters {weight:.1e}", *moved)
        assert loss <= losses
        np.testing.assert_allclose(got.norms, base.norms, rtol=1e-5)
        assert weight <= weights
        assert base.losses[-1] != base.losses[0]
        if parallel.strategy == "jit":
            assert not layout_runs.not_cut(got.state, config, sharding.make_mesh(parallel))
        for axis, measured, due, formula in moved:
            assert abs(measured - due) <= within * due, (axis, measured, due, formula)

    return check


def parallel_text(parallel: ParallelConfig) -> str:
    """The sizes that are not 1, and what else is chosen."""
    sizes = [f"{axis} {n}" for axis, n in zip(sharding.AXES, parallel.sizes(), strict=True) if n != 1]
    extra = [] if parallel.slices == 1 else [f"{parallel.slices} slices"]
    if parallel.stage > 1:
        extra += [f"{parallel.pipeline_microbatches or parallel.stage} microbatches"]
        extra += [f"{parallel.pipeline_rounds} rounds"] if parallel.pipeline_rounds > 1 else []
        extra += ["stages recomputed"] if parallel.pipeline_remat else []
    extra += [parallel.context] if parallel.seq > 1 else []
    return ", ".join(sizes + extra + ([parallel.strategy] if parallel.strategy != "jit" else []))
