"""A bigram model: the logits of the next token are a row of a table."""

import dataclasses
import functools

from bigmodel_jax.core.params import normal
from bigmodel_jax.models import Model, ModelConfig, Out
from bigmodel_jax.nn import linear


@dataclasses.dataclass(frozen=True)
class BigramConfig(ModelConfig):
    vocab_size: int = 264
    width: int = 16

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))


def spec(cfg: BigramConfig) -> dict:
    return {
        "embed": linear.embedding_spec(cfg.vocab_size, cfg.width, init=normal(0.02)),
        "out": linear.linear_spec(cfg.width, cfg.vocab_size, axes=("embed", "vocab")),
    }


def apply(cfg: BigramConfig, p: dict, batch: dict, *, rng=None, train=False, cache=None) -> Out:
    return Out(linear.linear(p["out"], linear.embed(p["embed"], batch["tokens"])))
