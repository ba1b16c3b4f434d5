"""ELECTRA: a BERT with a narrower embedding table, and a head that finds replaced tokens.

Clark et al., arXiv:2003.10555. The published discriminators have that head, and the generators have
the head of a masked LM. Shapes as in bert.py; E: width of the tables.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.models import bert
from bigmodel_jax.models.base import Entry, Model, Out, parts_of
from bigmodel_jax.models.bert import BertConfig
from bigmodel_jax.nn import linear

Head = Literal["none", "masked_lm", "replaced_token", "classification", "token_classification", "question_answering"]


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """ELECTRA (Clark et al., arXiv:2003.10555); defaults: the sizes of electra-small.

    The reference implementation is transformers' `ElectraForPreTraining` and its siblings. The head
    `replaced_token` returns the logits of two classes for each token, 0 original and 1 replaced:
    train it as `token_classification`. The other fields are those of `BertConfig`.
    """

    embed_dim: Count = 256
    num_heads: Count = 4
    mlp_dim: Count = 1024
    table_dim: Count = 128  # width of the embedding tables; if it is not embed_dim, a dense layer projects them
    head: Head = "masked_lm"  # what the model returns: see `leave`

    POOLED: ClassVar[tuple[str, ...]] = ("classification",)
    POOLER: ClassVar[Callable] = bert.gelu

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, bert.enter, bert.block, leave))

    @classmethod
    def tiny(cls) -> "ElectraConfig":
        return dataclasses.replace(super().tiny(), table_dim=16)


def spec(cfg: ElectraConfig) -> params.Tree:
    """BERT's parameters; for the head replaced_token, a dense layer (D, D) and one (D, 1)."""
    tree, D, init = bert.spec(cfg), cfg.embed_dim, normal(cfg.init_std)
    if cfg.head == "replaced_token":
        tree["replaced"] = {
            "dense": linear.linear_spec(D, D, axes=("embed", None), init=init, bias=True),
            "out": linear.linear_spec(D, 1, axes=("embed", None), init=init, bias=True),
        }
    return tree


def leave(cfg: ElectraConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """As `bert.leave`; replaced_token: logits (B, T, 2) of original and replaced.

    The first logit is 0, so the softmax over the two is the sigmoid of the published logit.
    """
    if cfg.head != "replaced_token":
        return bert.leave(cfg, p, entry, x_BTD, ys, batch, train=train)
    h = linear.linear(p["replaced"]["out"], bert.gelu(linear.linear(p["replaced"]["dense"], x_BTD)))
    return Out(jnp.concatenate([jnp.zeros_like(h), h], axis=-1))


SMALL, BASE = ElectraConfig(head="replaced_token"), {"embed_dim": 768, "table_dim": 768}
LARGE = {"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096, "table_dim": 1024}
PRESETS = {
    "electra-small-discriminator": SMALL,
    "electra-base-discriminator": dataclasses.replace(SMALL, **BASE, num_heads=12, mlp_dim=3072),
    "electra-large-discriminator": dataclasses.replace(SMALL, **LARGE),
    "electra-small-generator": ElectraConfig(),
    "electra-base-generator": ElectraConfig(table_dim=768),
    "electra-large-generator": ElectraConfig(num_layers=24, table_dim=1024),
}
