"""A neural n-gram language model (Bengio et al., 2003) in one file.

The last `context` tokens predict the next token.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.data import TextData
from bigmodel_jax.models import Model, ModelConfig, Out
from bigmodel_jax.nn import linear, norm
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class NgramConfig(ModelConfig):
    vocab_size: int = 4096
    context: int = 8
    embed_dim: int = 64
    hidden_dim: int = 512

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))


def spec(cfg: NgramConfig) -> dict:
    """Every parameter with its shape and logical axes, before any array exists."""
    D, F = cfg.embed_dim, cfg.hidden_dim
    return {
        "embed": linear.embedding_spec(cfg.vocab_size, D, init=normal(0.02)),
        "hidden": linear.linear_spec(cfg.context * D, F, axes=("embed", "mlp"), bias=True),
        "out": linear.linear_spec(F, D, axes=("mlp", "embed")),
        "norm": norm.rms_spec(D),
    }


def apply(cfg: NgramConfig, p: dict, batch: dict, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, T, V) float32 of batch["tokens"] (B, T)."""
    x_BTD, segments = linear.embed(p["embed"], batch["tokens"]), batch["segment_ids"]
    # A token of another document counts as absent.
    seen = [jnp.where((shift(segments, n) == segments)[..., None], shift(x_BTD, n), 0) for n in range(cfg.context)]
    h_BTF = jax.nn.gelu(linear.linear(p["hidden"], jnp.concatenate(seen, axis=-1)))
    y_BTD = x_BTD + linear.linear(p["out"], constrain(h_BTF, "batch", "seq", "mlp"))
    return Out(linear.unembed(p["embed"], norm.rms(p["norm"], y_BTD)))


def shift(x: jax.Array, n: int) -> jax.Array:
    """Row t holds what stood at t - n; zeros come in at the front."""
    return jnp.pad(x, ((0, 0), (n, 0), *((0, 0),) * (x.ndim - 2)))[:, : x.shape[1]]


def get_config() -> Config:
    return Config(
        model=NgramConfig(),
        objective=NextToken(),
        data=TextData(seq_len=256),
        optim=OptimConfig(lr=3e-3, warmup_steps=10),
        train=TrainConfig(steps=200, batch_size=8),
    )
