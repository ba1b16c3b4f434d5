"""What a model is: two pure functions, `init` and `apply`, made from a frozen config.

`apply` may be given in three parts (`Parts`): before, inside and after the stack of layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Tree
from bigmodel_jax.models import compute, sizes
from bigmodel_jax.nn import stack as stacks
from bigmodel_jax.nn.head import Head


class Out(NamedTuple):
    """What a model's `apply` returns.

    value: the model's output, such as logits. updates: new values of non-trainable parameters by
    path, or the sums from which `Model.advance` makes them. losses: auxiliary losses by name, each
    a mean over tokens, to be added to the objective's loss. cache: the decode cache after this
    call.
    head: the inputs of the logits over a vocabulary, for an objective that computes its loss
    without them. The compiler removes whichever of `value` and `head` is unused.
    """

    value: Any
    updates: dict[str, jax.Array] = {}  # noqa: RUF012 - never mutated
    losses: dict[str, jax.Array] = {}  # noqa: RUF012
    cache: Any = None
    head: Head | None = None


class Entry(NamedTuple):
    """What a model hands to its stack of layers.

    x: the activation that one layer passes to the next. xs: what each layer takes for itself, such
    as dropout keys or a cache, with a leading dimension L. shared: what all layers take. Dimension
    0 of each leaf is the batch. whole: what all layers take and what is independent of the batch's
    rows, such as a number or a table made of parameters. kept: what `leave` takes over.
    """

    x: Any
    xs: Any = None
    shared: tuple = ()
    whole: tuple = ()
    kept: Any = None


def _as_they_are(params: Tree, rng: Any) -> Tree:
    return params


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model of one stack of layers, given as three functions. A call is the model's `apply`.

    enter(params, batch, *, rng, train, cache) -> Entry: everything before the stack; rng is None
    outside training.
    block(layer, x, xs, *shared, *whole, train) -> (x, ys): one layer. In a pipeline, ys must be
    sums over rows.
    leave(params, entry, x, ys, batch, *, train) -> Out: everything after the stack.
    stack: the name of the layers' parameters. `enter` and `leave` get the parameters without them.
    remat, unroll: as in compute.py.
    read(params, rng) -> params: turns the declared parameters into those that the parts read; rng
    is None outside training.
    """

    enter: Callable[..., Entry]
    block: Callable[..., tuple[Any, Any]]
    leave: Callable[..., Out]
    stack: str = "layers"
    remat: stacks.Remat = "none"
    unroll: bool = False
    read: Callable[[Tree, Any], Tree] = _as_they_are

    def __call__(self, params: Tree, batch: dict, *, rng=None, train: bool = False, cache: Any = None) -> Out:
        rng = rng if train else None
        params = self.read(params, rng)
        layers, outside = params[self.stack], self.outside(params)
        entry = self.enter(outside, batch, rng=rng, train=train, cache=cache)
        run = self.layers(stacks.run, entry.whole, train)
        x, ys = run(layers, entry.x, entry.xs, shared=entry.shared)
        return self.leave(outside, entry, x, ys, batch, train=train)

    def outside(self, params: Tree) -> Tree:
        """The parameters without those of the stack."""
        return {name: part for name, part in params.items() if name != self.stack}

    def layers(self, run: Callable, whole: tuple, train: bool) -> Callable:
        """Returns the function (stacked, x, xs, *, shared) -> (x, ys) that runs the layers.

        run: stack.run or stack.sequential.
        """

        def body(layer, x, xs, *shared):
            return self.block(layer, x, xs, *shared, *whole, train=train)

        return functools.partial(run, body, remat=self.remat, unroll=self.unroll)


def parts_of(config: "ModelConfig", enter: Callable, block: Callable, leave: Callable, stack: str = "layers") -> Parts:
    """The `Parts` of functions that take the config first, with the config's remat and unroll."""
    of_config = (functools.partial(part, config) for part in (enter, block, leave))
    return Parts(*of_config, stack, remat=config.compute.remat, unroll=config.compute.unroll)


class Model(NamedTuple):
    """A model: its parameters' declarations and its pure functions.

    spec: nested dict of `Param`.
    apply(params, batch, *, rng=None, train=False, cache=None) -> Out, preferably a `Parts`.
    init(rng) -> params: replaces `params.init(spec, rng)` for a Flax module, which brings its own
    initial values.
    make_cache(batch_size, length, dtype): the declaration of a decode cache, for models that
    generate. It is a tree of `Param` whose axes name the rows ("batch") and the columns of a ring
    ("seq", models/decoder.py).
    decoder_start: the first token of an encoder-decoder's decoder. Prompts go to the encoder.
    forced_start: the token after decoder_start, which the decoder reads whatever the logits say;
    None: none.
    encoder_start: the token that the encoder's texts begin with; None: none.
    advance(non-trainable parameters, sums by path) -> new values, called once a step: for a model
    whose `updates` are sums over the tokens of a call, which add up over the microbatches. Without
    `advance`, each microbatch's `updates` replace those before.
    """

    spec: Any
    apply: Callable[..., Out]
    init: Callable[[jax.Array], Any] | None = None
    make_cache: Callable[[int, int, Any], Any] | None = None
    decoder_start: int | None = None
    forced_start: int | None = None
    encoder_start: int | None = None
    advance: Callable[[Any, dict[str, jax.Array]], Any] | None = None

    @property
    def parts(self) -> Parts | None:
        """The `Parts` of a model that is given in parts; None for any other."""
        return self.apply if isinstance(self.apply, Parts) else None

    @property
    def decoder_starts(self) -> tuple[int, ...]:
        """The tokens that an encoder-decoder's decoder reads before its first answer; else ()."""
        return tuple(token for token in (self.decoder_start, self.forced_start) if token is not None)

    def encoded(self, ids: Sequence[int], end: int) -> list[int]:
        """The encoder's tokens for a text: its ids between the start token, if any, and `end`."""
        return [*([] if self.encoder_start is None else [self.encoder_start]), *ids, end]


NO_DEPTH_FORM = "for which there is no depth form: base and model must have the same depth"
BRANCH_NORM = f"has norms at the end of each half of a block, {NO_DEPTH_FORM}"
POST_NORM = f"has norms after its residuals, {NO_DEPTH_FORM}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of every model's config: the numbers that describe a model, and `make`."""

    RENAMED: ClassVar[dict[str, str]] = compute.MOVED
    LAYERS_ALIKE: ClassVar[bool] = True  # layers differ in their weights and windows alone
    BLOCK_LAYERS: ClassVar[int] = 1  # layers in one block of the stack, which runs its blocks in turn
    SIZES: ClassVar[tuple] = ()  # which fields must fit each other and the mesh: sizes.py

    def make(self) -> Model:
        """Builds the model: its declared parameters and its pure functions, but no array."""
        raise NotImplementedError(f"{type(self).__name__} does not define make()")

    @classmethod
    def tiny(cls) -> "ModelConfig":
        """A model of this family that is small enough for a test."""
        raise NotImplementedError(f"{cls.__name__} does not define tiny()")

    def inputs(self) -> dict[str, tuple[int, ...] | None]:
        """The arrays of a batch that the model needs, by name, each with the shape of one row.

        None stands for any shape. {}: the model declares no inputs, and nothing is checked.
        """
        return {}

    def __getattr__(self, name: str) -> Any:
        if name not in self.RENAMED:
            return object.__getattribute__(self, name)  # raises Python's usual AttributeError
        raise AttributeError(f"{type(self).__name__}.{name} is now called {self.RENAMED[name]!r}")

    def validate(self, parallel) -> None:
        """Raises ValueError for fields that cannot work together, before anything is compiled.

        A subclass extends this method and calls it.
        """
        sizes.check(self, parallel)
        compute.check(self)

    def no_mup(self, depth: bool) -> str:
        """Why μP does not hold for the model; "" if it does.

        depth: whether depth scaling is asked for, too.
        """
        return ""

    def windows(self) -> tuple[int, ...]:
        """How many keys a token sees in each layer's attention; 0 = all that its layer may see.

        () if no layer has a window. A model with windows has `num_heads` heads of `head_dim` in all
        layers.
        """
        return ()


def with_parameters(model: Model, more: Tree) -> Model:
    """The model with additional parameters, which its `apply` does not read.

    Raises ValueError if the model already has a parameter of one of these names.
    """
    if taken := model.spec.keys() & more.keys():
        raise ValueError(f"objective: parameters() declares {sorted(taken)[0]!r}, which the model has itself")
    init = model.init and (lambda rng: model.init(rng) | params.init(more, rng))
    return model._replace(spec=model.spec | more, init=init) if more else model


def unpadded(config: ModelConfig) -> ModelConfig:
    """The same model with tables of exactly its vocabulary, as published files hold them."""
    return dataclasses.replace(config, pad_vocab=1) if hasattr(config, "pad_vocab") else config
