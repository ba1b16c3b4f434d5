"""Turns programs into functions of named arrays, as other runtimes call them, and makes test cases.

The arrays of the decode cache are inputs named "cache/..." and outputs named "new_cache/...". The
weights are constants of the function.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bigmodel_jax.config import Config
from bigmodel_jax.export import programs
from bigmodel_jax.export.compared import Case
from bigmodel_jax.export.programs import BESIDE, Program, Sizes, Table
from bigmodel_jax.export.stablehlo import array_text, longest
from bigmodel_jax.export.subject import Subject
from bigmodel_jax.models.adapters import AdapterConfig

NEW = "new_"  # begins the names of cache arrays that a program returns
# Sizes of the two test cases: rows, tokens, encoder tokens, cache columns. Two sizes show that a
# program works for sizes other than those it was traced with.
CASES = (Sizes(2, 5, 6, 12), Sizes(3, 9, 4, 16))


class Flat(NamedTuple):
    """A program as fn(*arrays) -> list of arrays.

    inputs: shape and type of each array, in the order of `fn`; outputs: the names of the results.
    """

    fn: Callable[..., list]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: list[str]


def plain(config: Config, subject: Subject) -> Config:
    """A config without adapters, from which another process can make the subject's model again."""
    return dataclasses.replace(config, model=subject.config, adapters=AdapterConfig())


def names(subject: Subject) -> tuple[str, ...]:
    """The names of a model's programs. Only a model that generates has `prefill` and `decode`."""
    return ("forward",) if subject.model.make_cache is None else ("forward", "prefill", "decode")


def program(name: str, subject: Subject, sizes: Sizes, config: Config) -> Program:
    """One program of a model by its name, for the given sizes.

    `forward` takes positions as an input where the model reads them. Without that input, no length
    could stay symbolic.
    """
    if name == "forward":
        return programs.forward(subject, sizes, config.data.row(), BESIDE | {"positions": "tokens"})
    if name == "prefill":
        return programs.prefill(subject, sizes, config.data.row())
    # The cache's shapes do not depend on the length.
    prefill = programs.prefill(subject, sizes._replace(length=1), config.data.row())
    left = jax.eval_shape(prefill.fn, *prefill.arguments.values())
    return programs.decode(subject, sizes, left["cache"])


def flat(made: Program, weights: Table) -> Flat:
    """The program as a function of its inputs alone, with the weights as constants."""
    tables = {table: given for table, given in made.arguments.items() if table != "weights"}
    places = [(table, name) for table, given in tables.items() for name in given]
    outputs = list(_named(jax.eval_shape(made.fn, *made.arguments.values())))

    # `weights` is closed over, so a converter stores the weights as constants of the program.
    def fn(*arrays: Any) -> list:
        given: dict[str, Table] = {table: {} for table in tables}
        for (table, name), x in zip(places, arrays, strict=True):
            given[table][name] = x
        results = _named(made.fn(weights, *given.values()))
        return [results[name] for name in outputs]

    inputs = {_name(table, name): tables[table][name] for table, name in places}
    return Flat(fn, inputs, outputs)


def _name(table: str, name: str) -> str:
    return name if table == "batch" else f"{table}/{name}"


def _named(results: Table) -> Table:
    own = {name: x for name, x in results.items() if name != "cache"}
    return own | {f"{NEW}cache/{name}": x for name, x in results.get("cache", {}).items()}


def with_open_sizes(name: str, subject: Subject, given: tuple[int, int], config: Config) -> Program:
    """One program with symbolic sizes, except for those that are given.

    The symbols are b rows, t tokens, e encoder tokens and s cache columns. `given` fixes the number
    of rows, and that of tokens and columns. A 0 leaves a number symbolic.
    """
    open_ = program(name, subject, _symbols(given, ["t <= s"]), config)
    used = {str(n) for table in open_.arguments.values() for x in table.values() for n in x.shape}
    most = longest(subject.config)
    bounds = [f"{size} <= {most}" for size in ("t", "e") if most and size in used]
    starts = len(subject.model.decoder_starts)
    bounds += [f"s >= {starts}"] if starts > 1 and "s" in used else []
    bounds += ["t <= s"] if {"t", "s"} <= used else []
    return program(name, subject, _symbols(given, bounds), config)


def _symbols(given: tuple[int, int], bounds: list[str]) -> Sizes:
    batch, length = given
    b, t, e, s = export.symbolic_shape("b, t, e, s", constraints=bounds)
    return Sizes(batch or b, length or t, length or e, length or s)


def cases(subject: Subject, config: Config, given: tuple[int, int]) -> Iterator[tuple[str, Case]]:
    """Yields (program's name, case) for all programs, each in two sizes.

    `decode` continues from the cache that `prefill` returned.
    """
    # The seed is fixed, so that a failed comparison can be repeated.
    rng, batch, length = np.random.default_rng(0), *given  # 0 in `given` means that the size is symbolic
    most = longest(subject.config) or max(CASES[-1])
    for case in CASES:
        tokens, source = length or min(case.length, most), length or min(case.source, most)
        sizes = Sizes(batch or case.batch, tokens, source, length or case.columns)
        cache: Table = {}
        # The order matters: decode takes the cache that prefill returned.
        for name in names(subject):
            made = program(name, subject, sizes, config)
            given_batch = _inputs(made.arguments["batch"], subject, name, tokens, rng)
            inputs = {"batch": given_batch} | ({"cache": cache or _empty(made)} if name != "forward" else {})
            results = jax.jit(made.fn)(subject.weights, *inputs.values())
            cache = results.get("cache", {})
            arrays = {_name(table, key): x for table, given in inputs.items() for key, x in given.items()}
            yield name, Case(_numpy(arrays), _numpy(_named(results)))


def _numpy(table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in table.items()}


def _empty(made: Program) -> Table:
    return {name: jnp.zeros(x.shape, x.dtype) for name, x in made.arguments["cache"].items()}


def _inputs(shapes: Table, subject: Subject, name: str, tokens: int, rng: np.random.Generator) -> Table:
    """Random inputs of one program.

    The last row is padded by two tokens where its length allows, so that masking is tested.
    """
    found = {key: _drawn(key, x, subject.config, rng) for key, x in shapes.items()}
    for key in [key for key in found if key.endswith("segment_ids")]:
        if name != "decode" and found[key].shape[1] > 2:
            # Prompts are padded on the left, whole texts on the right.
            padded = slice(None, 2) if name == "prefill" else slice(-2, None)
            found[key][-1, padded] = 0
    if "positions" in found:
        segments = found.get("segment_ids", np.ones_like(found["positions"]))
        found["positions"] = np.maximum(segments.cumsum(1, dtype=np.int32) - 1, 0)
        if name == "decode":
            found["positions"] += tokens
    return found


def _drawn(key: str, x: jax.ShapeDtypeStruct, config: Any, rng: np.random.Generator) -> np.ndarray:
    if key.endswith("segment_ids"):
        return np.ones(x.shape, np.int32)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return rng.normal(size=x.shape).astype(x.dtype)
    limit = {"token_types": 2, "label": getattr(config, "num_classes", 2)}.get(key, smallest_vocabulary(config))
    return rng.integers(0, limit if x.dtype != jnp.bool_ else 2, x.shape).astype(x.dtype)


def smallest_vocabulary(config: Any) -> int:
    """The smallest vocabulary among a model and its towers; 2 where none has one.

    Random ids stay below it.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    inside = [smallest_vocabulary(value) for value in values.values() if dataclasses.is_dataclass(value)]
    return min([n for n in (*inside, values.get("vocab_size", 0)) if n > 2], default=2)


def texts(table: Mapping[str, Any]) -> dict[str, str]:
    """`array_text` of each array, in the table's order."""
    return {name: array_text(x) for name, x in table.items()}
