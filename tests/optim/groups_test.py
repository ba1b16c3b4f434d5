"""Groups: which parameters a pattern takes, what is done to them, and that what is frozen stays."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

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
from bigmodel_jax.training.state import abstract_state, init_state
from bigmodel_jax.training.step import accumulate, make_train_step

BASE = Config(
    LlamaConfig.tiny(),
    NextToken(),
    TextData(source=TextFiles("a", "b")),
    optim=OptimConfig(lr=1e-2, schedule="constant"),
    train=TrainConfig(steps=10, batch_size=8),
    parallel=ParallelConfig(data=1),
)
FROZEN = (Group("embed/.*|layers/mlp/.*", freeze=True),)


def with_groups(*groups: Group, **parts) -> Config:
    return dataclasses.replace(BASE, optim=dataclasses.replace(BASE.optim, groups=groups), **parts)


def batch(rows: int = 8) -> dict:
    tokens = np.random.default_rng(0).integers(0, 64, (rows, 17), dtype=np.int32)
    weights = (np.arange(rows * 16).reshape(rows, 16) % 7 > 0).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def run(config: Config, steps: int = 2) -> tuple[dict, dict, dict]:
    """(parameters before, after, metrics of the last step)."""
    size = abs(np.prod([getattr(config.parallel, axis) for axis in ("stage", "data", "fsdp")]))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:size])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    before = params.paths(jax.tree.map(np.asarray, state.params))
    for _ in range(steps):
        state, sums = step(state, batch())
    scalars = {name: float(mean.compute()) for name, mean in sums.items()}
    return before, params.paths(jax.tree.map(np.asarray, state.params)), scalars


# ------------------------------------------------------------------------------------------------ patterns


SPEC = BASE.model.make().spec
BAD = {
    "misspelt": ((Group("layer/.*"),), r"'layer/\.\*' matches no trained parameter's whole path; the nearest: layers/"),
    "a part of a path": ((Group("layers"),), "matches no trained parameter's whole path"),
    "taken": ((Group("layers/.*"), Group("layers/attn/q")), r"groups\[1\].* only parameters that an earlier group has"),
    "no pattern": ((Group("(x"),), r"groups\[0\]\.pattern = '\(x' is no regular expression: missing \)"),
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


# ------------------------------------------------------------------------------------------------ what is done


def test_a_group_has_the_rate_the_decay_and_the_rule_that_it_says():
    """Against each rule alone on the same gradients."""
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


def test_what_is_frozen_stays_bit_for_bit():
    before, after, scalars = on_one_device()
    assert {path for path in before if np.array_equal(before[path], after[path])} == grouping.frozen(FROZEN, SPEC)
    assert scalars["learning_rate"] == pytest.approx(BASE.optim.lr)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_frozen_stays_and_the_rest_moves_alike_on_every_layout(layout):
    plain, alone, alone_scalars = on_one_device()
    before, after, scalars = run(with_groups(*FROZEN, **LAYOUTS[layout]))
    assert {path for path in before if np.array_equal(before[path], after[path])} == grouping.frozen(FROZEN, SPEC)
    for path in before:
        np.testing.assert_allclose(after[path] - before[path], alone[path] - plain[path], atol=2e-5, err_msg=path)
    assert scalars["grad_norm"] == pytest.approx(alone_scalars["grad_norm"], rel=1e-4)


def test_no_gradient_of_a_frozen_parameter_is_computed_or_carried():
    """By the jaxpr: fewer products, and no sum over microbatches of the frozen shapes."""
    model = BASE.model.make()
    tree = params.init(model.spec, jax.random.key(0))
    config = with_groups(*FROZEN, train=dataclasses.replace(BASE.train, microbatches=2))

    def text(config):
        return str(jax.make_jaxpr(lambda t: accumulate(config, model, t, {}, batch(), jax.random.key(0)))(tree))

    plain = text(dataclasses.replace(config, optim=dataclasses.replace(config.optim, groups=())))
    frozen = text(config)
    assert frozen.count("dot_general") == plain.count("dot_general") - 3, "gate, up and down"
    grads, *_ = jax.eval_shape(lambda t: accumulate(config, model, t, {}, batch(), jax.random.key(0)), tree)
    assert jax.tree.structure(grads) == jax.tree.structure(tree), "zeros, so that every form of a step takes them"
