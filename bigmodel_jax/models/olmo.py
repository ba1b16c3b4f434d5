"""OLMo 2 and 3: a Llama with norms after attention and MLP instead of before them.

One further norm covers all queries of a token, and another covers all its keys (arXiv:2501.00656).
In OLMo 3, three layers in four have a window (arXiv:2512.13961). Shapes as in llama.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, ones
from bigmodel_jax.core.ranges import Count, NonNegative, Positive
from bigmodel_jax.models import llama
from bigmodel_jax.models.base import BRANCH_NORM, Model
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.nn import position
from bigmodel_jax.nn.position import RopeScaling


@dataclasses.dataclass(frozen=True)
class Olmo2Config(LlamaConfig):
    """OLMo 2 (arXiv:2501.00656); defaults: OLMo 2 7B.

    The reference implementation is transformers' `Olmo2ForCausalLM`. The fields are
    `LlamaConfig`'s.
    """

    vocab_size: Count = 100_352
    rope_theta: Positive = 500_000.0
    qk_norm: bool = True  # whether queries, and keys, have an RMSNorm over all heads of a token
    norm_eps: NonNegative = 1e-6

    def make(self) -> Model:
        return llama.model(self, block_spec)

    def no_mup(self, depth):
        return BRANCH_NORM if depth else ""


@dataclasses.dataclass(frozen=True)
class Olmo3Config(Olmo2Config):
    """OLMo 3 (arXiv:2512.13961); defaults: OLMo 3 7B.

    The reference implementation is transformers' `Olmo3ForCausalLM`. rope_scaling applies to the
    layers without the window.
    """

    vocab_size: Count = 100_278
    max_seq_len: Count = 65_536
    rope_scaling: RopeScaling = RopeScaling("yarn", 8.0, 8192, attention_factor=1.2079441541679836)
    window: Count = 4096
    global_every: Count = 4  # every n-th layer, counted from 1, sees all tokens before; the others have the window

    def make(self) -> Model:
        return llama.model(self, block_spec, embed=embed, block=block)

    def windows(self) -> tuple[int, ...]:
        return tuple(self.window if local else 0 for local in is_local(self))

    @classmethod
    def tiny(cls) -> "Olmo3Config":
        return dataclasses.replace(super().tiny(), window=4, global_every=2)


def is_local(cfg: Olmo3Config) -> np.ndarray:
    """Returns (L,) bool: which layers have the window."""
    return (np.arange(cfg.num_layers) + 1) % cfg.global_every != 0


def heads_norm_spec(num_heads: int, head_dim: int, axis: str) -> params.Tree:
    """The scale (num_heads, head_dim) of a norm over all heads of a token."""
    return {"scale": Param((num_heads, head_dim), (axis, "head_dim"), ones(), decay=False)}


def block_spec(cfg: Olmo2Config) -> params.Tree:
    """Llama's attention and MLP, norms over all queries and all keys, and norms after each half."""
    tree = llama.block_spec(cfg)
    norms = {
        "q_norm": heads_norm_spec(cfg.num_heads, cfg.head_dim, "heads"),
        "k_norm": heads_norm_spec(cfg.num_kv_heads, cfg.head_dim, "kv_heads"),
    }
    return {
        "attn": tree["attn"] | (norms if cfg.qk_norm else {}),
        "attn_post_norm": tree["attn_norm"],
        "mlp": tree["mlp"],
        "mlp_post_norm": tree["mlp_norm"],
    }


def embed(cfg: Olmo3Config, p, tokens, positions, rng):
    """As `llama.embed`, with further results for the layers.

    These are (L,) bool, which layers are local, and the global and local rotary angles.
    """
    x_BTD, _, (far,) = llama.embed(cfg, p, tokens, positions, rng)
    near = position.rope_angles(positions, cfg.head_dim, theta=cfg.rope_theta)
    return x_BTD, is_local(cfg), ((far, near),)


def block(cfg: Olmo3Config, p, x_BTD, xs, q_where, k_where, angles, index, *, train):
    """As `llama.block`, with the window and the rotary angles that this layer has."""
    local = xs[1]
    # A scan has one program for all layers, so each layer selects its angles by a traced flag.
    turn = jax.tree.map(lambda far, near: jnp.where(local, near, far), *angles)
    return llama.block(cfg, p, x_BTD, xs, q_where, k_where, turn, index, train=train, local=local)


PRESETS = {
    "olmo-2-1b": Olmo2Config(num_layers=16, embed_dim=2048, num_heads=16, num_kv_heads=16, mlp_dim=8192),
    "olmo-2-7b": Olmo2Config(),
    "olmo-2-13b": Olmo2Config(num_layers=40, embed_dim=5120, num_heads=40, num_kv_heads=40, mlp_dim=13_824),
    "olmo-2-32b": Olmo2Config(num_layers=64, embed_dim=5120, num_heads=40, num_kv_heads=8, mlp_dim=27_648),
    "olmo-3-7b": Olmo3Config(),
    "olmo-3-32b": Olmo3Config(num_layers=64, embed_dim=5120, num_heads=40, num_kv_heads=8, mlp_dim=27_648),
}
