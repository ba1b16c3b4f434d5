"""What a model is: two pure functions, made from a frozen config; the second may be given in three parts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Tree
from bigmodel_jax.models import compute, sizes
from bigmodel_jax.nn import stack as stacks
from bigmodel_jax.nn.head import Head


class Out(NamedTuple):
    """value: the model's output (logits); updates: new values of non-trainable parameters by path, or what
    `Model.advance` makes them of; losses: auxiliary losses to add to the objective's, by name (mean over tokens); cache:
    the decode cache after this call.

    head: what the logits over a vocabulary are made of, for an objective that does without them: of the two, the
    compiler drops the one that is not used."""

    value: Any
    updates: dict[str, jax.Array] = {}  # noqa: RUF012 - never mutated
    losses: dict[str, jax.Array] = {}  # noqa: RUF012
    cache: Any = None
    head: Head | None = None


class Entry(NamedTuple):
    """What a model hands to its stack of layers.

    x: what a layer passes to the next; xs: what each layer takes for itself, (L, ...) (keys, a cache); shared: what all
    layers take, each leaf with the batch as its dimension 0; whole: what all layers take and no row of the batch changes
    (a number, a table made of parameters); kept: what `leave` takes over.
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
    """A model of one stack of layers in its three parts; called, it is the model's `apply`.

    enter(params, batch, *, rng, train, cache) -> Entry: all that comes before the stack; rng is None outside training.
    block(layer, x, xs, *shared, *whole, train) -> (x, ys): one layer. In a pipeline ys must be sums over rows.
    leave(params, entry, x, ys, batch, *, train) -> Out: all that comes after the stack.
    stack: the name of the layers in the parameters; `enter` and `leave` get the parameters without it.
    read(params, rng) -> the parameters that the parts get, of those that the model declares; rng is None outside training.
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
        """The parameters without the stack's."""
        return {name: part for name, part in params.items() if name != self.stack}

    def layers(self, run: Callable, whole: tuple, train: bool) -> Callable:
        """(stacked, x, xs, *, shared) -> (x, ys): the layers by `run`, stack.run or stack.sequential."""

        def body(layer, x, xs, *shared):
            return self.block(layer, x, xs, *shared, *whole, train=train)

        return functools.partial(run, body, remat=self.remat, unroll=self.unroll)


def parts_of(config: "ModelConfig", enter: Callable, block: Callable, leave: Callable, stack: str = "layers") -> Parts:
    """The parts whose functions take the model's config first; it says how the layers are computed."""
    of_config = (functools.partial(part, config) for part in (enter, block, leave))
    return Parts(*of_config, stack, remat=config.compute.remat, unroll=config.compute.unroll)


class Model(NamedTuple):
    """spec: nested dict of `Param`; apply(params, batch, *, rng=None, train=False, cache=None) -> Out, best as `Parts`.

    init(rng) -> params replaces `params.init(spec, rng)` only where a Flax module brings its own initial values.
    make_cache(batch_size, length, dtype) -> the declaration of a decode cache, a tree of `Param` whose axes name the
    rows ("batch") and the columns of a ring ("seq", models/decoder.py), for models that generate.
    decoder_start: of an encoder-decoder, the token its decoder begins with; prompts go to the encoder.
    advance(non-trainable parameters, sums by path) -> new ones, once a step: for a model whose `updates` are sums over
    the tokens of a call, which add up over the pieces of a batch. Without it each piece's `updates` replace the last's.
    """

    spec: Any
    apply: Callable[..., Out]
    init: Callable[[jax.Array], Any] | None = None
    make_cache: Callable[[int, int, Any], Any] | None = None
    decoder_start: int | None = None
    advance: Callable[[Any, dict[str, jax.Array]], Any] | None = None

    @property
    def parts(self) -> Parts | None:
        """The parts of a model whose `apply` is given in parts."""
        return self.apply if isinstance(self.apply, Parts) else None


NO_DEPTH_FORM = "for which there is no depth form: base and model must have the same depth"
BRANCH_NORM = f"has norms at the end of each half of a block, {NO_DEPTH_FORM}"
POST_NORM = f"has norms after its residuals, {NO_DEPTH_FORM}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of every model's config: numbers that describe one model, and `make` to build its two functions."""

    RENAMED: ClassVar[dict[str, str]] = compute.MOVED
    LAYERS_ALIKE: ClassVar[bool] = True  # a layer computes the same in another's place, but for its window
    SIZES: ClassVar[tuple] = ()  # which of its numbers fit each other and the mesh: sizes.py

    def make(self) -> Model:
        raise NotImplementedError(f"{type(self).__name__} does not define make()")

    def inputs(self) -> dict[str, tuple[int, ...] | None]:
        """The arrays of a batch that the model cannot do without, by name, with the shape of one row's, None where any
        will do. {}: not declared, and nothing is checked."""
        return {}

    def __getattr__(self, name: str) -> Any:
        if name not in self.RENAMED:
            return object.__getattribute__(self, name)  # raises what it raised before
        raise AttributeError(f"{type(self).__name__}.{name} is now called {self.RENAMED[name]!r}")

    def validate(self, parallel) -> None:
        """Raises ValueError for a combination that cannot work, before anything is compiled; extended, not replaced."""
        sizes.check(self, parallel)
        compute.check(self)

    def no_mup(self, depth: bool) -> str:
        """Why μP does not hold for the model, or its depth form where `depth` is asked for; "" where it does."""
        return ""

    def windows(self) -> tuple[int, ...]:
        """How many keys a token sees in each layer's causal attention, 0 = all before it; () where no layer has a window.

        All its layers attend with `num_heads` heads of `head_dim`."""
        return ()


def with_parameters(model: Model, more: Tree) -> Model:
    """The model with parameters beside its own, which its `apply` does not read; ValueError where a name is taken."""
    if taken := model.spec.keys() & more.keys():
        raise ValueError(f"objective: parameters() declares {sorted(taken)[0]!r}, which the model has itself")
    init = model.init and (lambda rng: model.init(rng) | params.init(more, rng))
    return model._replace(spec=model.spec | more, init=init) if more else model


def unpadded(config: ModelConfig) -> ModelConfig:
    """The same model with tables of just its vocabulary, as published files hold them."""
    return dataclasses.replace(config, pad_vocab=1) if hasattr(config, "pad_vocab") else config
