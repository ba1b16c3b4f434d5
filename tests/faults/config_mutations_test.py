"""A thousand seeded mutations of config.json: each is one line that names what is wrong, or a
config that says so."""

import collections
import copy
import json
import random

import pytest

import runs
from bigmodel_jax import config_file
from bigmodel_jax.config import flat
from bigmodel_jax.config_checks import validate

VALUES = (
    *(None, True, False, 0, -1, 5, 2**70, -0.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "nan", "1", "runs/x", "\x00", "é\U0001f600", [], {}, [1], [None], ["a", "b"], [[]], {"type": 5}),
    *({"type": None}, {"type": ".x:Y"}, {"type": "os:abort"}, {"type": "bigmodel_jax.config:TrainConfig"}, {"a": 1}),
    {"type": "bigmodel_jax.optim:OptimConfig", "lr": "fast"},
)


def places(node, path=()):
    """Every path into a JSON value."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def mutate(node, draw: random.Random):
    """(the mutated config, what was done)."""
    node = copy.deepcopy(node)
    path = draw.choice([p for p in places(node) if p])
    parent = node
    for key in path[:-1]:
        parent = parent[key]
    kind, value = draw.choice(("replace", "replace", "replace", "remove", "add")), draw.choice(VALUES)
    if kind == "remove":
        del parent[path[-1]]
    elif kind == "add" and isinstance(parent, dict):
        parent[draw.choice(("x", "Type", f"{path[-1]}s"))] = value
    else:
        parent[path[-1]] = value
    return node, f"{kind} {'.'.join(map(str, path))} {value!r}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return config_file.to_json(config_file.load(runs.write(tmp_path_factory.mktemp("base"))))


def opened(folder):
    """(the config, "") or (None, what is wrong with it)."""
    try:
        config = config_file.load(folder)
        validate(config, 1)
    except ValueError as error:
        return None, str(error)
    return config, ""


def config_outcome(base: dict, folder, draw: random.Random) -> tuple[str, str, bool]:
    """(the mutation, what came of it, whether that is accounted for)."""
    node, what = mutate(base, draw)
    (folder / "config.json").write_text(json.dumps(node))
    config, said = opened(folder)
    if config is None:
        return what, "refused", "\n" not in said and len(said) < 2000
    # A field that was taken away has its default; any other change is one of a named field.
    same = config_file.from_json(base)
    return what, "changed", flat(config) != flat(same) or "remove" in what or config_file.to_json(config) == node


@pytest.mark.slow
def test_a_thousand_mutations_end_in_one_line_or_in_a_config_that_differs(base, tmp_path):
    draw, seen = random.Random(7), collections.Counter()
    for _ in range(1000):
        what, came, accounted = config_outcome(base, tmp_path, draw)
        assert accounted, what
        seen[came] += 1
    assert seen["refused"] > 500, seen
    assert seen["changed"] > 50, seen


NO_CONFIG = (
    *("", "null", "5", '"x"', "[]", "{}", "[" * 100_000, '{"a":' * 100_000, "\ufeff{}", "{]", "\x00", "nan"),
    *('{"type": 5}', '{"type": ".x:Y"}', '{"type": "os:abort"}', '{"type": "bigmodel_jax.config:Config"}'),
)


@pytest.mark.parametrize(
    "text",
    NO_CONFIG,
    ids=lambda text: repr(text[:20]),
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        config_file.load(tmp_path)
    assert "\n" not in str(error.value)
