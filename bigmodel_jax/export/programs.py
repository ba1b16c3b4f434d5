"""A model's programs as functions of flat tables of arrays.

Every model has `forward`. A model that generates also has `prefill` and `decode`. A table maps
names to arrays: weights by their path, a batch by the names of the model's inputs, and the decode
cache by the path of each of its arrays. A size is a number or a symbol of `jax.export`.

Shapes: B batch, T tokens, S columns of the cache, V vocab.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param
from bigmodel_jax.data.fields import Field
from bigmodel_jax.export.subject import Subject
from bigmodel_jax.inference.slots import cache_dtype, last_logits
from bigmodel_jax.models.base import Out

Table = dict[str, Any]
# Optional input of a model -> the required input that has the same shape. Positions are not listed,
# because the program computes them for whole texts.
BESIDE = {"segment_ids": "tokens", "token_types": "tokens", "encoder_segment_ids": "encoder_tokens"}
INTEGERS = {"tokens", "encoder_tokens", "label", "prefix"}
TEXTS = {"tokens", "prefix", "encoder_tokens"}  # inputs with one number per token, whose length may stay open
STATES = {"text_states": "text_dim"}  # inputs with one vector per token -> the config's field with its width


class Sizes(NamedTuple):
    """The sizes of a program's arrays: numbers, or symbols of `jax.export`.

    batch: rows; length: tokens of a text; source: tokens of an encoder's text; columns: columns of
    the cache.
    """

    batch: Any
    length: Any
    source: Any
    columns: Any


class Program(NamedTuple):
    """A function fn(weights, batch, ...) -> table, and its tables of arguments by name.

    The arguments are `jax.ShapeDtypeStruct`, without values.
    """

    fn: Callable
    arguments: dict[str, Table]


def forward(subject: Subject, sizes: Sizes, row: Mapping[str, Field], beside: Mapping[str, str] = BESIDE) -> Program:
    """(weights, batch) -> {"output": logits, or what else the model computes}.

    row: the fields that the run's data declares. beside: the optional inputs that the program takes
    if the model reads them, each with the input whose shape it has.

    Raises a ValueError of one line for a model that does not declare its inputs or their shapes.
    """
    batch = {name: _input(subject, name, shape, sizes, row) for name, shape in subject.config.inputs().items()}
    if not batch:
        raise ValueError(f"{subject.kind} does not say what it reads: its inputs() is empty")

    def fn(weights: Table, batch: Table) -> Table:
        value = subject.model.apply(params.from_paths(weights), batch).value
        return named(value, "output")

    # The model is traced once to find out which optional inputs it reads.
    found = _Reads(batch)
    jax.eval_shape(lambda weights: fn(weights, found), abstract(subject.weights))
    states = [batch[name] for name in STATES if name in batch]
    texts = batch | ({"tokens": states[0]} if states else {})
    more = {name: _places(texts[of]) for name, of in beside.items() if name in found.names and of in texts}
    if "hidden" in found.names:
        more["hidden"] = jax.ShapeDtypeStruct((sizes.batch,), jnp.bool_)
    if "ngrams" in found.names and "ngrams" in row:
        more["ngrams"] = jax.ShapeDtypeStruct((sizes.batch, *row["ngrams"].shape), jnp.int32)
    # Weights are an argument, not constants, so one file of weights serves all programs.
    return Program(fn, {"weights": abstract(subject.weights), "batch": batch | more})


class _Reads(dict):
    """A batch that records which names the model asks for. Symbolic sizes become 2 in it."""

    def __init__(self, batch: Mapping[str, Any]):
        shapes = {name: [n if isinstance(n, int) else 2 for n in x.shape] for name, x in batch.items()}
        super().__init__({name: jnp.zeros(shapes[name], x.dtype) for name, x in batch.items()})
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __contains__(self, name: str) -> bool:
        self.names.add(name)
        return super().__contains__(name)


def _places(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One integer for each token of an input (B, T) or (B, T, D)."""
    return jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)


def _input(subject: Subject, name: str, shape: tuple | None, sizes: Sizes, row: Mapping[str, Field]) -> Any:
    if shape is None and name in TEXTS:
        shape = (sizes.source if name == "encoder_tokens" else sizes.length,)
    elif shape is None and name in STATES and name not in row:
        shape = (sizes.length, getattr(subject.config, STATES[name]))
    elif shape is None:
        shape = row[name].shape if name in row else None
        if shape is None:
            raise ValueError(f"neither {subject.kind} nor the run's data says the shape of the input {name!r}")
    declared = row[name].dtype if name in row else "float32"
    dtype = "int32" if name in INTEGERS else declared
    return jax.ShapeDtypeStruct((sizes.batch, *shape), dtype)


def prefill(subject: Subject, sizes: Sizes, row: Mapping[str, Field]) -> Program:
    """(weights, batch, cache) -> {"logits": (B, V) at the last position, "cache": with the
    prompts}.

    Prompts are padded on the left with segment 0. They go to the encoder where it reads texts. The
    batch also holds the model's other inputs, such as an image or a recording. row: as in
    `forward`.
    """
    reads, starts = subject.config.inputs(), _starts(subject)
    names = ("encoder_tokens", "encoder_segment_ids") if starts else ("tokens", "positions", "segment_ids")
    length = sizes.source if starts else sizes.length
    batch = {name: jax.ShapeDtypeStruct((sizes.batch, length), jnp.int32) for name in names}
    batch |= {name: _input(subject, name, shape, sizes, row) for name, shape in reads.items() if name not in TEXTS}
    declared = subject.model.make_cache(sizes.batch, sizes.columns, cache_dtype(subject.weights))

    def fn(weights: Table, batch: Table, cache: Table) -> Table:
        # The text of an encoder-decoder begins with the decoder's start tokens, from position 0.
        if starts:
            # These three arrays have the shape (B, number of start tokens).
            ones = jnp.ones((batch["encoder_tokens"].shape[0], len(starts)), jnp.int32)
            tokens, positions = (ones * jnp.asarray(row, jnp.int32) for row in (starts, range(len(starts))))
            batch = batch | {"tokens": tokens, "positions": positions, "segment_ids": ones}
        return _advance(subject, weights, batch, _unflattened(declared, cache))

    cache = {name: jax.ShapeDtypeStruct(p.shape, p.dtype) for name, p in _leaves(declared).items()}
    return Program(fn, {"weights": abstract(subject.weights), "batch": batch, "cache": cache})


def _starts(subject: Subject) -> tuple[int, ...]:
    """The tokens with which a decoder begins whose encoder reads the prompt; else ()."""
    return subject.model.decoder_starts if "encoder_tokens" in subject.config.inputs() else ()


def decode(subject: Subject, sizes: Sizes, cache: Mapping[str, Any]) -> Program:
    """Like `prefill`, with one token per row (B, 1). cache: the arrays that `prefill` returns.

    The positions of an encoder-decoder count from its last start token, which has position 0.
    """
    before = max(len(_starts(subject)) - 1, 0)
    batch = {name: jax.ShapeDtypeStruct((sizes.batch, 1), jnp.int32) for name in ("tokens", "positions", "segment_ids")}
    declared = subject.model.make_cache(sizes.batch, sizes.columns, cache_dtype(subject.weights))

    def fn(weights: Table, batch: Table, cache: Table) -> Table:
        batch = batch | {"positions": batch["positions"] + before}
        return _advance(subject, weights, batch, _unflattened(declared, cache))

    cache = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in cache.items()}
    return Program(fn, {"weights": abstract(subject.weights), "batch": batch, "cache": cache})


def _advance(subject: Subject, weights: Table, batch: Table, cache: Any) -> Table:
    out: Out = subject.model.apply(params.from_paths(weights), batch, cache=cache)
    return {"logits": last_logits(out), "cache": _leaves(out.cache)}


def abstract(table: Mapping[str, Any]) -> Table:
    """The shapes and types of a table's arrays, without their values."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in table.items()}


def named(tree: Any, name: str) -> Table:
    """The arrays of a pytree by their paths below `name`."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_declared)
    return {"/".join((name, jax.tree_util.keystr(path, simple=True, separator="/"))).strip("/"): x for path, x in found}


def _leaves(cache: Any) -> Table:
    return named(cache, "")


def _unflattened(declared: Any, cache: Table) -> Any:
    treedef = jax.tree.structure(declared, is_leaf=_declared)
    return jax.tree.unflatten(treedef, [cache[name] for name in _leaves(declared)])


def _declared(x: Any) -> bool:
    return isinstance(x, Param)
