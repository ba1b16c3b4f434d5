"""A Llama with a block of one's own: its MLP has no gate, and squares a ReLU (Primer,
arXiv:2109.08668)."""

import dataclasses

import jax

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.params import normal
from bigmodel_jax.data import TextData
from bigmodel_jax.models import LlamaConfig, Model, llama
from bigmodel_jax.nn import feedforward, norm
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class PrimerConfig(LlamaConfig):
    power: int = 2

    def make(self) -> Model:
        return llama.model(self, block_spec, block=block)


def block_spec(cfg: PrimerConfig) -> dict:
    """The parameters of one layer."""
    init = normal(cfg.init_std)
    mlp = feedforward.mlp_spec(cfg.embed_dim, cfg.mlp_dim, init=init, out_init=init)
    return llama.block_spec(cfg) | {"mlp": mlp}


def block(cfg: PrimerConfig, p: dict, x_BTD, xs, *where, train: bool):
    """One layer: (x, (its decode cache, nothing for the loss)). xs holds the decode cache alone."""
    x_BTD, cache = llama.attend(cfg, p, x_BTD, xs[0], *where)
    h = norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps)
    return x_BTD + feedforward.mlp(p["mlp"], h, lambda h: jax.nn.relu(h) ** cfg.power), (cache, None)


def get_config() -> Config:
    return Config(
        model=PrimerConfig(vocab_size=8192, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=4, mlp_dim=512),
        objective=NextToken(),
        data=TextData(seq_len=256),
        optim=OptimConfig(lr=3e-3, warmup_steps=10),
        train=TrainConfig(steps=200, batch_size=8),
    )
