"""Recurrent networks: a language model and a text classifier of Flax's simple, LSTM and GRU cells.

In packed rows, the state restarts from zero wherever a position is 0. Padding leaves it unchanged.

Dropout is variational (Gal and Ghahramani, arXiv:1512.05287): one mask per row for a layer's inputs
and one for its recurrent state. Word types, not occurrences, are dropped from the embedding. All
masks are the same at every time step.

Shapes: B batch, T tokens, D embed, H hidden, V vocab.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigmodel_jax.core import initial as initial_values
from bigmodel_jax.core import params
from bigmodel_jax.core.initial import Initial
from bigmodel_jax.core.params import Init, Param, normal, zeros
from bigmodel_jax.core.ranges import Classes, Count, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.sizes import Cut
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.head import Head

CELLS = {"rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """The fields that the language model and the classifier share."""

    cell: Literal["rnn", "lstm", "gru"] = "lstm"  # Flax's SimpleCell, OptimizedLSTMCell or GRUCell
    vocab_size: Count = 10_000  # tokens in the vocabulary
    num_layers: Depth = 2  # layers of cells
    embed_dim: Count = 650  # width
    hidden_dim: Count = 650  # dimensions of a cell's state
    dropout: ShareBelowOne = 0.0  # dropout rate of the inputs of each layer and of the head
    recurrent_dropout: ShareBelowOne = 0.0  # dropout rate of the state, where the next step multiplies it
    embedding_dropout: ShareBelowOne = 0.0  # share of word types that are dropped
    activation: Activation = "tanh"  # activation of the new state; the gates of an LSTM or a GRU are sigmoids
    init: Initial = "default"  # kernels' distribution; default: orthogonal for the state's, LeCun's for the others
    init_std: NonNegative = 0.02  # standard deviation of "normal", "truncated_normal" and "uniform"

    SIZES: ClassVar[tuple] = (Cut("vocab_size", "vocab"), Cut("hidden_dim", "mlp"))

    def inputs(self):
        return {"tokens": None}


@dataclasses.dataclass(frozen=True)
class RNNConfig(RecurrentConfig):
    """A language model of recurrent cells. Its decode cache is the cells' state.

    The architecture is Zaremba et al.'s (arXiv:1409.2329) with variational dropout
    (arXiv:1512.05287). The reference implementation of the cells is Flax's `linen`.
    """

    max_seq_len: Count = 1024  # longest generated text, in tokens; the state itself has no limit

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self), make_cache=functools.partial(make_cache, self))

    @classmethod
    def tiny(cls) -> "RNNConfig":
        return cls(vocab_size=64, embed_dim=16, hidden_dim=24, max_seq_len=32)


@dataclasses.dataclass(frozen=True)
class RNNClassifierConfig(RecurrentConfig):
    """A classifier of texts by the mean output of recurrent cells over a text's tokens."""

    num_classes: Classes = 2  # number of classes

    def make(self) -> Model:
        return Model(classifier_spec(self), functools.partial(classify, self))

    @classmethod
    def tiny(cls) -> "RNNClassifierConfig":
        return cls(vocab_size=64, embed_dim=16, hidden_dim=24, cell="gru")


# ---- parameters ----


@functools.cache
def cell_spec(kind: str, in_dim: int, hidden_dim: int) -> params.Tree:
    """The parameters of Flax's cell, with Flax's names and initial distributions."""
    cell = CELLS[kind](hidden_dim)
    x = jax.ShapeDtypeStruct((1, in_dim), jnp.float32)
    shapes = jax.eval_shape(lambda x: cell.init(jax.random.key(0), initial(kind, 1, hidden_dim, x.dtype), x), x)

    def one(path: str, shape: tuple[int, ...]) -> Param:
        if path.endswith("bias"):
            return Param(shape, ("mlp",), zeros())
        recurrent = path.startswith("h")
        # An orthogonal matrix keeps the state's length in repeated products (Saxe et al.,
        # arXiv:1312.6120).
        init = jax.nn.initializers.orthogonal() if recurrent else jax.nn.initializers.lecun_normal()
        name, spread = "orthogonal" if recurrent else "lecun_normal", lambda shape: shape[0] ** -0.5
        return Param(shape, ("embed", "mlp"), Init(name, init, spread))

    return params.from_paths({path: one(path, x.shape) for path, x in params.paths(shapes["params"]).items()})


def body_spec(cfg: RecurrentConfig) -> params.Tree:
    """The table (V, D) and the cells layer0, layer1, ..."""
    dims = [cfg.embed_dim, *[cfg.hidden_dim] * (cfg.num_layers - 1)]
    embed = linear.embedding_spec(cfg.vocab_size, cfg.embed_dim, init=normal(cfg.embed_dim**-0.5))
    return {"embed": embed} | {f"layer{i}": cell_spec(cfg.cell, n, cfg.hidden_dim) for i, n in enumerate(dims)}


def spec(cfg: RNNConfig) -> params.Tree:
    """The language model: the body, and a head (V, H) with a bias (V,)."""
    head = linear.embedding_spec(cfg.vocab_size, cfg.hidden_dim, init=normal(cfg.hidden_dim**-0.5))
    tree = body_spec(cfg) | {"head": head | {"bias": Param((cfg.vocab_size,), ("vocab",), zeros())}}
    return initial_values.weights(tree, cfg.init, cfg.init_std)


def classifier_spec(cfg: RNNClassifierConfig) -> params.Tree:
    """The classifier: the body, and a head (H, num_classes) with a bias."""
    head = linear.linear_spec(cfg.hidden_dim, cfg.num_classes, axes=("mlp", None), bias=True)
    return initial_values.weights(body_spec(cfg) | {"head": head}, cfg.init, cfg.init_std)


# ---- state ----


def initial(kind: str, batch_size: int, hidden_dim: int, dtype: Any) -> Any:
    """A cell's state before the first token: h (B, H); for an LSTM (c, h), each (B, H)."""
    zero = jnp.zeros((batch_size, hidden_dim), dtype)
    return (zero, zero) if kind == "lstm" else zero


def make_cache(cfg: RecurrentConfig, batch_size: int, length: int, dtype: Any) -> list:
    """The declaration of all layers' states, (B, H) each. `length` is unused."""
    state = Param((batch_size, cfg.hidden_dim), ("batch", None), zeros(), jnp.dtype(dtype).name)
    return [(state, state) if cfg.cell == "lstm" else state] * cfg.num_layers


# ---- dropout ----


def sequence_mask(rng: jax.Array | None, rate: float, x: jax.Array, *, shape: tuple[int, ...]) -> jax.Array | float:
    """A dropout mask of 0 and 1 / (1 - rate) for all time steps; 1.0 without dropout."""
    if rng is None or not rate:
        return 1.0
    return (jax.random.bernoulli(rng, 1 - rate, shape) / (1 - rate)).astype(x.dtype)


def drop_words(
    rng: jax.Array | None, rate: float, x_BTD: jax.Array, tokens_BT: jax.Array, vocab_size: int
) -> jax.Array:
    """x (B, T, D) with the embeddings of some word types zeroed, at all their places in a row."""
    if rng is None or not rate:
        return x_BTD
    mask_BV = sequence_mask(rng, rate, x_BTD, shape=(tokens_BT.shape[0], vocab_size))
    return x_BTD * jnp.take_along_axis(mask_BV, tokens_BT, axis=1)[..., None]


# ---- forward ----


def call_cell(cell: nn.Module, p: params.Tree, carry: Any, x_BD: jax.Array, mask: jax.Array | float) -> tuple:
    """One step of Flax's cell: (new state, output (B, H)), the state masked only in its products.

    A GRU also passes its state on without a product. If the mask applied to that path too, the
    state would vanish, or explode through the mask's scale.
    """

    def masked(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.module.name.startswith("h"):
            args = (args[0] * mask, *args[1:])
        return call(*args, **kwargs)

    if isinstance(carry, tuple):  # an LSTM's h enters products alone; its memory c is a separate array
        carry = (carry[0], carry[1] * mask)
    with nn.intercept_methods(masked):
        return cell.apply({"params": p}, carry, x_BD)


def layer(cfg: RecurrentConfig, p, x_BTD, carry, fresh_BT, real_BT, mask) -> tuple[Any, jax.Array]:
    """Returns (state after the last token, outputs (B, T, H)).

    fresh_BT: the state restarts before this token. real_BT: the token is not padding. mask: the
    recurrent dropout's.
    """
    cell = CELLS[cfg.cell](cfg.hidden_dim, activation_fn=ACTIVATIONS[cfg.activation])
    # A cell's weights are sharded in storage and gathered for use. Sharded over "tensor", they
    # would cost a collective per time step; and with the batch sharded over two axes, XLA (0.12)
    # computes wrong gradients for the loop.
    p = jax.tree.map(lambda w: constrain(w, *(None,) * w.ndim), p)

    def step(carry, inputs):
        x_BD, fresh, real = inputs
        before = jax.tree.map(lambda s: jnp.where(fresh, jnp.zeros_like(s), s), carry)
        after, y_BH = call_cell(cell, p, before, x_BD, mask)
        return jax.tree.map(lambda new, old: jnp.where(real, new, old), after, carry), y_BH

    steps = (x_BTD.swapaxes(0, 1), fresh_BT.T[..., None], real_BT.T[..., None])
    carry, y_TBH = jax.lax.scan(step, carry, steps)
    return carry, constrain(y_TBH.swapaxes(0, 1), "batch", None, None)


def run(cfg: RecurrentConfig, p, batch: dict, rng: jax.Array | None, states: list | None) -> tuple[jax.Array, list]:
    """Returns (outputs of the last layer (B, T, H), states of all layers).

    rng: None in evaluation. states: those to continue from, or None.
    """
    tokens = batch["tokens"]
    B, T = tokens.shape
    positions = batch.get("positions")
    if positions is None:  # as a default of `get` it would always be traced, and ONNX has no form for it
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    real_BT = batch.get("segment_ids", jnp.ones_like(tokens)) > 0
    fresh_BT = real_BT & (positions == 0)
    keys = [None] * (2 * cfg.num_layers + 2) if rng is None else jax.random.split(rng, 2 * cfg.num_layers + 2)
    x = constrain(linear.embed(p["embed"], tokens), "batch", None, None)
    x = drop_words(keys[-1], cfg.embedding_dropout, x, tokens, cfg.vocab_size)
    states = states or [initial(cfg.cell, B, cfg.hidden_dim, x.dtype)] * cfg.num_layers
    after = []
    for i, state in enumerate(states):
        x = x * sequence_mask(keys[2 * i], cfg.dropout, x, shape=(B, 1, x.shape[-1]))
        mask = sequence_mask(keys[2 * i + 1], cfg.recurrent_dropout, x, shape=(B, cfg.hidden_dim))
        state, x = layer(cfg, p[f"layer{i}"], x, state, fresh_BT, real_BT, mask)
        after.append(state)
    return x * sequence_mask(keys[-2], cfg.dropout, x, shape=(B, 1, x.shape[-1])), after


def apply(cfg: RNNConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, T, V) float32; batch: tokens, positions, segment_ids (B, T).

    With a cache, the states continue from it.
    """
    x, states = run(cfg, p, batch, rng if train else None, cache)
    head = Head(x, p["head"]["table"], p["head"]["bias"])
    return Out(head.logits(), cache=None if cache is None else states, head=head)


def classify(cfg: RNNClassifierConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, num_classes) of the mean output over a row's tokens without padding."""
    x_BTH, _ = run(cfg, p, batch, rng if train else None, None)
    real_BT1 = (batch.get("segment_ids", jnp.ones_like(batch["tokens"])) > 0)[..., None].astype(x_BTH.dtype)
    mean = (x_BTH * real_BT1).sum(axis=1) / jnp.maximum(real_BT1.sum(axis=1), 1)
    return Out(linear.linear(p["head"], mean))


# The medium and large networks of Zaremba et al., arXiv:1409.2329, as Gal and Ghahramani use them.
PRESETS = {
    "ptb-medium": RNNConfig(dropout=0.5),
    "ptb-large": RNNConfig(embed_dim=1500, hidden_dim=1500, dropout=0.65),
}
