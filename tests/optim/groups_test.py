"""Groups: which parameters a pattern takes, what is done to them, and that what is frozen is a
constant."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import optax
import pytest
from grids import few

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, TrainConfig, override
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData, TextFiles
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import Group, OptimConfig
from bigmodel_jax.optim import groups as grouping
from bigmodel_jax.training.state import abstract_constants, abstract_state, init_constants, init_state
from bigmodel_jax.training.step import make_train_step

BASE = Config(
    LlamaConfig.tiny(),
    NextToken(),
    TextData(source=TextFiles("a", "b")),
    optim=OptimConfig(lr=1e-2, schedule="constant"),
    train=TrainConfig(steps=10, batch_size=8),
    parallel=ParallelConfig(data=1),
)
FROZEN = (Group("embed/.*|layers/mlp/.*", freeze=True),)
FIXED = {"embed/table", "layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"}


def with_groups(*groups: Group, **parts) -> Config:
    return dataclasses.replace(BASE, optim=dataclasses.replace(BASE.optim, groups=groups), **parts)


def batch(rows: int = 8) -> dict:
    tokens = np.random.default_rng(0).integers(0, 64, (rows, 17), dtype=np.int32)
    weights = (np.arange(rows * 16).reshape(rows, 16) % 7 > 0).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def run(config: Config, steps: int = 2) -> tuple[dict, dict, dict]:
    """(trained parameters before, after, metrics of the last step)."""
    size = abs(np.prod([getattr(config.parallel, axis) for axis in ("stage", "data", "fsdp")]))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:size])
    state, fixed, step = init_state(config, mesh), init_constants(config, mesh), make_train_step(config, mesh)
    before = params.paths(jax.tree.map(np.asarray, state.params))
    for _ in range(steps):
        state, sums = step(state, batch(), fixed)
    scalars = {name: float(mean.compute()) for name, mean in sums.items()}
    return before, params.paths(jax.tree.map(np.asarray, state.params)), scalars


# ----------------------------------------------------------------------------------------- patterns


SPEC = BASE.model.make().spec
BAD = {
    "misspelt": ((Group("layer/.*"),), r"'layer/\.\*' matches no trained parameter's whole path; the nearest: layers/"),
    "a part of a path": ((Group("layers"),), "matches no trained parameter's whole path"),
    "taken": ((Group("layers/.*"), Group("layers/attn/q")), r"groups\[1\].* only parameters that an earlier group has"),
    "no pattern": ((Group("(x"),), r"groups\[0\]\.pattern = '\(x' is not a regular expression: missing \)"),
    "all": ((Group(".*", freeze=True),), "freezes every parameter"),
    "frozen at a rate": ((Group(".*", freeze=True, lr=1.0),), r"\('\.\*'\) has freeze = True and lr"),
    "range": ((Group(".*", lr=-1.0),), r"optim.groups.0.lr = -1.0; it must be 0 or more"),
    "optimizer": ((Group(".*", optimizer="adamww"),), r"optim.groups.0.optimizer = 'adamww'; .* meant 'adamw'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pattern_that_does_nothing_is_refused(name):
    groups, says = BAD[name]
    with pytest.raises(ValueError, match=says) as error:
        validate(with_groups(*groups))
    assert "\n" not in str(error.value)


def test_the_first_pattern_counts_and_the_table_says_what_is_done():
    groups = (Group("layers/attn/.*", lr=0.5), Group("layers/.*", optimizer="muon", weight_decay=0.0), *FROZEN[:0])
    rows = grouping.rows((*groups, Group("embed/.*", freeze=True)), SPEC)
    sizes = {path: p.size for path, p in params.paths(SPEC).items()}
    attention = sum(n for path, n in sizes.items() if path.startswith("layers/attn/"))
    assert rows[0] == ("layers/attn/.*", "4", f"{attention:,}", f"{attention / sum(sizes.values()):.1%}", "lr 0.5")
    assert [row[4] for row in rows] == ["lr 0.5", "optimizer muon, weight_decay 0.0", "frozen", "trained"]
    assert [row[0] for row in grouping.rows((Group(".*", lr=1.0),), SPEC)] == [".*"], "no row for a rest of nothing"


def test_groups_are_saved_and_read_and_other_options_leave_them():
    config = with_groups(Group("layers/.*", lr=0.5), *FROZEN[:1])
    assert config_file.from_json(json.loads(json.dumps(config_file.to_json(config)))) == config
    assert override(config, ["--optim.clip", "2"]).optim == dataclasses.replace(config.optim, clip=2.0)


# ------------------------------------------------------------------------------------- what is done


@pytest.mark.slow
def test_a_group_has_the_rate_the_decay_and_the_rule_that_it_says():
    """Each group moves as its rule alone moves it on the same gradients."""
    groups = (Group("layers/attn/.*", lr=0.5), Group("layers/mlp/.*", optimizer="sgd", weight_decay=0.0))
    cfg = OptimConfig(lr=0.1, schedule="linear", clip=0.0)
    rules = {
        "layers/attn/": dataclasses.replace(cfg, lr=0.5),
        "layers/mlp/": dataclasses.replace(cfg, name="sgd", weight_decay=0.0),
        "": cfg,
    }
    tree = params.init(SPEC, jax.random.key(0))
    grads = jax.tree.map(lambda x: np.asarray(x) * 0.1, tree)

    def two_updates(config):
        optimizer = config.make(SPEC, 10)
        state, value = optimizer.tx.init(tree), tree
        for _ in range(2):
            before = state
            updates, state = optimizer.tx.update(grads, state, value, grad_norm=np.float32(0), value=np.float32(0))
            value = optax.apply_updates(value, updates)
        return params.paths(value), optimizer.rates(before, state)

    got, rates = two_updates(dataclasses.replace(cfg, groups=groups))
    for path, value in got.items():
        alone, _ = two_updates(next(rule for prefix, rule in rules.items() if path.startswith(prefix)))
        np.testing.assert_allclose(value, alone[path], rtol=1e-6, err_msg=path)
    assert {name: round(float(rate), 5) for name, rate in rates.items()} == {
        "learning_rate": 0.091,
        "learning_rate/layers/attn": 0.455,
        "learning_rate/layers/mlp": 0.091,
    }


def test_moments_of_groups_lie_like_their_parameters_and_frozen_ones_have_none():
    groups = (Group("layers/attn/.*", optimizer="muon"), Group("layers/mlp/.*", freeze=True))
    config = with_groups(*groups, parallel=ParallelConfig(data=1, fsdp=8))
    state = abstract_state(config, sharding.make_mesh(config.parallel))
    own = {path: p.sharding for path, p in params.paths(state.params).items()}
    found = set()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        names = [str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey)]
        for path in ("/".join(names[n:]) for n in range(len(names))):
            if path in own:
                assert leaf.sharding == own[path], jax.tree_util.keystr(keys)
                found.add(path)
    assert found == {path for path in own if not path.startswith("layers/mlp/")}


LAYOUTS = {
    "microbatches": {"train": dataclasses.replace(BASE.train, microbatches=2)},
    "fsdp": {"parallel": ParallelConfig(data=1, fsdp=2)},
    "pipeline": {"parallel": ParallelConfig(data=1, stage=2)},
    "1f1b": {"parallel": ParallelConfig(data=1, stage=2, pipeline_schedule="1f1b")},
    "deterministic": {"parallel": ParallelConfig(data=2, deterministic=True, deterministic_groups=8)},
    "pmap": {"parallel": ParallelConfig(data=2, strategy="pmap")},
}


@functools.cache
def on_one_device() -> tuple[dict, dict, dict]:
    return run(with_groups(*FROZEN))


def kinds(spec) -> dict[str, str]:
    return {path: p.kind for path, p in params.paths(spec).items()}


@pytest.mark.slow
def test_what_is_frozen_is_a_constant_and_the_rest_trains():
    spec = with_groups(*FROZEN).make_model().spec
    assert {path for path, kind in kinds(spec).items() if kind == "constant"} == FIXED
    assert list(params.paths(spec)) == list(params.paths(SPEC)), "the order of the leaves stays"
    assert grouping.freeze(FROZEN, spec) == spec, "the same once more, as the optimizer asks for it"
    before, after, scalars = on_one_device()
    assert set(before) == set(after) == params.paths(SPEC).keys() - FIXED
    assert not any(np.array_equal(before[path], after[path]) for path in before)
    assert scalars["learning_rate"] == pytest.approx(BASE.optim.lr)
    drawn = params.paths(params.init(SPEC, jax.random.key(BASE.train.seed)))
    mesh = sharding.make_mesh(BASE.parallel, jax.devices()[:1])
    for path, x in params.paths(init_constants(with_groups(*FROZEN), mesh)).items():
        np.testing.assert_array_equal(x, drawn[path], err_msg="the draw that it would have, were it trained")


@pytest.mark.few("1f1b")
@pytest.mark.slow
@pytest.mark.parametrize("layout", few(LAYOUTS, "fsdp", "1f1b"))
def test_what_is_beside_frozen_parameters_moves_alike_on_every_layout(layout):
    plain, alone, alone_scalars = on_one_device()
    before, after, scalars = run(with_groups(*FROZEN, **LAYOUTS[layout]))
    for path in before:
        np.testing.assert_allclose(after[path] - before[path], alone[path] - plain[path], atol=2e-5, err_msg=path)
    assert scalars["grad_norm"] == pytest.approx(alone_scalars["grad_norm"], rel=1e-4)


def test_the_compiled_step_neither_differentiates_carries_nor_returns_what_is_frozen():
    """The test looks in the program for arrays of the frozen matrices' sizes, which no other array
    has."""
    model = dataclasses.replace(BASE.model, mlp_dim=37)
    micro = dataclasses.replace(BASE.train, microbatches=2)
    texts = {}
    for name, groups in {"plain": (), "frozen": (Group("layers/mlp/.*", freeze=True),)}.items():
        config = with_groups(*groups, model=model, train=micro)
        mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
        state, fixed = abstract_state(config, mesh), abstract_constants(config, mesh)
        traced = make_train_step(config, mesh).trace(state, batch(), fixed)
        sizes = {aval.shape for aval in traced.jaxpr.out_avals}
        texts[name] = sizes, traced.lower().as_text()
    shapes = {(2, 32, 37), (2, 37, 32)}
    assert shapes <= texts["plain"][0]
    assert not shapes & texts["frozen"][0], "not returned"
    (plain, products), (kept, fewer) = (_carried_and_products(texts[name][1], shapes) for name in ("plain", "frozen"))
    assert (plain, kept) == (True, False), "not carried over the microbatches"
    assert products - fewer == 3, "no product for the gradients of gate, up and down"


def _carried_and_products(text: str, shapes: set[tuple[int, ...]]) -> tuple[bool, int]:
    """(whether a float32 sum has one of the shapes, number of products) in a lowered program."""
    sums = re.findall(r"stablehlo\.add .*: tensor<([\dx]+)xf32>", text)
    return bool({"x".join(map(str, shape)) for shape in shapes} & set(sums)), text.count("stablehlo.dot_general")
