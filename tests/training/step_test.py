import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import Compute, LlamaConfig, MLPConfig
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.state import abstract_state, init_state, weights
from bigmodel_jax.training.step import accumulate, make_train_step, train_step

ROWS, LENGTH = 8, 16
CONFIG = Config(
    LlamaConfig.tiny(),
    NextToken(),
    DataConfig(),
    optim=OptimConfig(lr=1e-2),
    parallel=ParallelConfig(data=1),
    train=TrainConfig(steps=40, batch_size=ROWS),
)
IMAGES = dataclasses.replace(CONFIG, model=MLPConfig.tiny(), objective=Classification())


def text_batch(seed: int = 0) -> dict:
    """Rows whose numbers of weighted targets differ widely, so that a mean of means would be
    wrong."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 64, (ROWS, LENGTH + 1)).astype(np.int32)
    weights = (np.arange(LENGTH) < rng.integers(1, LENGTH, (ROWS, 1))).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def image_batch(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    image, label = rng.random((ROWS, 8, 8, 1), np.float32), rng.integers(0, 10, ROWS).astype(np.int32)
    return {"image": image, "label": label, "weights": np.ones(ROWS, np.float32)}


AVERAGED = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema_decay=0.75))


def one_device():
    return sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])


@functools.cache
def compiled(config: Config):
    """The step of one device, made once for all tests."""
    return make_train_step(config, one_device())


def run(config: Config, batches: list[dict], make=compiled):
    state, step, losses = init_state(config, one_device()), make(config), []
    for batch in batches:
        state, sums = step(state, batch)
        losses.append(float(sums["loss"].compute()))
    return np.array(losses), state, sums


@functools.cache
def fresh() -> params.Tree:
    """Initial parameters of CONFIG's model."""
    return jax.jit(functools.partial(params.init, CONFIG.model.make().spec))(jax.random.key(0))


@functools.cache
def in_pieces(microbatches: int) -> tuple:
    """(mean gradients, the sum of the loss, all sums) of a batch that is cut so."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, microbatches=microbatches))
    model = config.model.make()
    add_up = jax.jit(lambda tree, b: accumulate(config, model, tree, {}, b, jax.random.key(0)))
    grads, mean, sums, _ = add_up(fresh(), text_batch())
    return jax.tree.map(lambda g: g / mean.count, grads), mean, sums


@pytest.mark.parametrize("microbatches", few([2, 4], 4))
def test_microbatches_equal_the_large_batch(microbatches):
    """Gradients, loss and metrics are equal although the microbatches have unequal token counts."""
    whole, parts = in_pieces(1), in_pieces(microbatches)
    assert float(whole[1].count) == float(parts[1].count) == text_batch()["weights"].sum()
    for path, g in params.paths(whole[0]).items():
        np.testing.assert_allclose(params.paths(parts[0])[path], g, atol=2e-7, rtol=1e-5, err_msg=path)
    np.testing.assert_allclose(parts[2]["loss"].compute(), whole[2]["loss"].compute(), rtol=1e-6)


@pytest.mark.exhaustive  # statistics_test.py compares a step in pieces with the step of the whole batch
def test_five_steps_with_microbatches_equal_five_without():
    batches = [text_batch(i) for i in range(5)]
    pieces = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, microbatches=4))
    whole, parts = run(CONFIG, batches), run(pieces, batches)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)


@pytest.mark.slow
def test_batch_statistics_pass_through_every_microbatch():
    """Running statistics see all microbatches in turn, so they differ from those after one large
    batch."""
    config = dataclasses.replace(CONFIG, model=CNNConfig.tiny(), objective=Classification())
    pieces = dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=2))
    state = init_state(pieces, one_device())
    before = sharding.to_host(state.frozen)
    after = sharding.to_host(run(pieces, [image_batch()])[1].frozen)
    once = sharding.to_host(run(config, [image_batch()])[1].frozen)
    name = next(p for p in params.paths(before) if p.endswith("mean"))
    moved, moved_once = params.paths(after)[name], params.paths(once)[name]
    # Two updates with momentum m move the mean by about (1 - m^2) of the way, one by (1 - m).
    assert np.abs(moved).sum() > 1.5 * np.abs(moved_once).sum()


@pytest.mark.few("int8")
@pytest.mark.slow
@pytest.mark.parametrize("matmul", ["int8", "float8"])
def test_products_in_8_bits_follow_float32(matmul):
    """Over 40 steps on one batch, the loss stays within 3 % of float32's and falls as far.
    Evaluation is exact."""
    batches = [text_batch()] * 40
    full, _, _ = run(CONFIG, batches)
    config = dataclasses.replace(CONFIG, precision=Policy(matmul=matmul))
    eighth, state, _ = run(config, batches)
    np.testing.assert_allclose(eighth, full, rtol=0.03)
    assert (eighth != full).any()
    evaluations = [
        make_eval_step(c, one_device())(weights(state), text_batch())["loss"].total for c in (config, CONFIG)
    ]
    assert evaluations[0] == evaluations[1]


@pytest.mark.slow
@pytest.mark.parametrize("remat", few(("full", "dots"), "full"))
def test_remat_and_unroll_change_nothing(remat):
    base, _, _ = run(CONFIG, [text_batch(i) for i in range(3)])
    for change in ({"remat": remat}, {"unroll": True}, {"remat": remat, "unroll": True}):
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, compute=Compute(**change)))
        np.testing.assert_allclose(run(config, [text_batch(i) for i in range(3)])[0], base, rtol=1e-5)


@pytest.mark.slow
def test_remat_lowers_memory():
    """The option has an effect: the compiled step of a deep stack has less temporary memory."""
    model = dataclasses.replace(CONFIG.model, num_layers=12)
    sizes = {}
    for remat in ("none", "full"):
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(model, compute=Compute(remat=remat)))
        state, step = abstract_state(config, one_device()), make_train_step(config, one_device())
        sizes[remat] = step.lower(state, text_batch()).compile().memory_analysis().temp_size_in_bytes
    assert sizes["full"] < 0.7 * sizes["none"], sizes


@pytest.mark.slow
def test_bfloat16_follows_float32():
    """Over 40 steps on one batch, the loss stays within 3 % of float32's and falls as far."""
    batches = [text_batch()] * 40
    full, _, _ = run(CONFIG, batches)
    half, state, _ = run(dataclasses.replace(CONFIG, precision=Policy(compute="bfloat16")), batches)
    assert full[-1] < 0.6 * full[0]
    np.testing.assert_allclose(half, full, rtol=0.03)
    assert (half != full).any()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.opt_state[0].mu)))


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    state, _ = compiled(AVERAGED)(init_state(AVERAGED, one_device()), text_batch())
    before = sharding.to_host(state)
    bad = text_batch() | {"weights": np.full((ROWS, LENGTH), np.nan, np.float32)}
    after, sums = compiled(AVERAGED)(state, bad)
    after = sharding.to_host(after)
    assert float(sums["skipped_steps"].total) == 1
    assert after.step == before.step + 1
    chex.assert_trees_all_equal(after.replace(step=0), before.replace(step=0))


@pytest.mark.slow
def test_a_select_skips_what_a_branch_skips():
    """TPUs and GPUs have no branch in the step; the states are the same after a good step and after
    a bad one."""
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema_decay=0.9))
    model = config.model.make()
    optimizer = config.optim.make(model.spec, config.train.steps)
    gradients = functools.partial(accumulate, config, model)
    state = sharding.to_host(init_state(config, one_device()))
    bad = text_batch() | {"weights": np.full((ROWS, LENGTH), np.nan, np.float32)}
    step = functools.partial(train_step, config, model, optimizer, gradients)
    steps = [jax.jit(functools.partial(step, branch=b)) for b in (True, False)]
    for batch in (text_batch(), bad):
        branch, select = (step(state, batch)[0] for step in steps)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), select, branch)
    chex.assert_trees_all_equal(select.replace(step=0), state.replace(step=0))


@pytest.mark.slow
def test_the_average_follows_the_parameters():
    state = init_state(AVERAGED, one_device())
    start = sharding.to_host(state.params)
    state, _ = compiled(AVERAGED)(state, text_batch())
    want = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * np.asarray(b), start, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, want)


def test_the_state_is_donated():
    state = init_state(AVERAGED, one_device())
    compiled(AVERAGED)(state, text_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_the_step_compiles_once():
    mesh = one_device()
    step, state = make_train_step(CONFIG, mesh), init_state(CONFIG, mesh)
    for i in range(3):
        state, _ = step(
            state, jax.device_put(text_batch(i), sharding.batch_sharding(mesh, CONFIG.parallel.rules, ("seq",)))
        )
    assert step._cache_size() == 1


@pytest.mark.slow
def test_the_step_without_a_compiler_is_the_step():
    """The step's Python computes the same without tracing, so nothing in it depends on being
    traced."""
    batches = [image_batch()]
    with chex.fake_jit():
        losses, state, _ = run(IMAGES, batches, make=compiled.__wrapped__)
    want, compiled_state, _ = run(IMAGES, batches)
    np.testing.assert_allclose(losses, want, rtol=1e-6)
    chex.assert_trees_all_close(state.params, compiled_state.params, atol=1e-4)  # Adam turns rounding into steps


@pytest.mark.slow
def test_pmap_on_devices_that_are_not_there_is_the_step():
    """Four replicas run as one program over a leading dimension. The sum over devices is then a sum
    on one device."""
    replicated = dataclasses.replace(IMAGES, parallel=ParallelConfig(strategy="pmap", data=4))
    mesh = sharding.make_mesh(ParallelConfig(data=4), jax.devices()[:4])
    with chex.fake_pmap():
        state, sums = make_train_step(replicated, mesh)(init_state(IMAGES, one_device()), image_batch())
    losses, want, _ = run(IMAGES, [image_batch()])
    np.testing.assert_allclose(sums["loss"].compute(), np.repeat(losses, 4), rtol=1e-6)
    for replica in range(4):  # each has the whole state
        mine = jax.tree.map(lambda x: x[replica], state.params)  # noqa: B023
        chex.assert_trees_all_close(mine, sharding.to_host(want.params), atol=1e-4)


@pytest.mark.slow
def test_clipping_bounds_the_update_and_reports_the_norm_before():
    config = dataclasses.replace(
        CONFIG, optim=OptimConfig(name="sgd", lr=1.0, betas=(0.0, 0.0), weight_decay=0, clip=0.01)
    )
    mesh = one_device()
    state = init_state(config, mesh)
    start = sharding.to_host(state.params)
    state, sums = make_train_step(config, mesh)(state, text_batch())
    moved = jax.tree.map(lambda a, b: a - np.asarray(b), start, state.params)
    total = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))
    assert float(sums["grad_norm"].compute()) > 0.1
    # The first rate of a cosine without warm-up is the peak itself.
    np.testing.assert_allclose(total, 0.01, rtol=1e-3)


@pytest.mark.slow
def test_weight_decay_reaches_matrices_alone():
    spec = CONFIG.model.make().spec
    tx = OptimConfig(lr=1.0, weight_decay=0.5).make(spec, 10).tx
    tree = params.init(spec, jax.random.key(0))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, tree), tx.init(tree), tree, grad_norm=jnp.zeros(()))
    for path, p in params.paths(spec).items():
        moved = np.abs(params.paths(updates)[path]).max() > 0
        assert moved == (not path.endswith("scale")), path
        assert p.decay == moved
