"""Qwen3-Next: three layers of Gated DeltaNet, then one of gated attention, all with many experts.

Gated DeltaNet (arXiv:2412.06464) keeps a state of fixed size per row. Attention rotates a part of
each head, and a sigmoid gates its output. Every layer has routed experts and a shared one, which
has a gate of its own. All norms but those of DeltaNet's outputs scale by 1 + scale.

Shapes: B batch, T tokens, S cache length, D embed, H heads, h head_dim, K key heads of DeltaNet, G
value heads per key head, k key dimensions, v value dimensions, W taps of the convolution, F mlp.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, normal, ones
from bigmodel_jax.core.ranges import Count, Depth, NonNegative, Positive
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder, mixtral
from bigmodel_jax.models.base import Model, ModelConfig, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.decoder import SIZES, declared, table_spec, update_cache
from bigmodel_jax.models.gemma import rms, rms_spec
from bigmodel_jax.models.sizes import AtMost, Cut, Divides, Multiple
from bigmodel_jax.nn import delta_rule, feedforward, kept, linear, norm, position
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.experts import moe
from bigmodel_jax.nn.head import Head

# The layers of one block of the stack.
DELTA = ("delta0", "delta1", "delta2")
LAYERS = (*DELTA, "attention")


@dataclasses.dataclass(frozen=True)
class Qwen3NextConfig(ModelConfig):
    """Qwen3-Next, with Gated DeltaNet in three of four layers; defaults: 80B-A3B.

    The reference implementation is transformers' `Qwen3NextForCausalLM`, without the published
    files' module for multi-token prediction. What counts the layers of a stack counts blocks of
    four: stages of a pipeline, taps, stochastic depth.
    """

    vocab_size: Count = 151_936  # tokens in the vocabulary
    num_layers: Depth = 48  # number of layers; every fourth has attention
    embed_dim: Count = 2048  # width of the residual stream
    num_heads: Count = 16  # attention heads
    num_kv_heads: Count = 2  # heads of keys and values; a divisor of num_heads
    head_dim: Count = 256  # dimensions of an attention head
    rotary_dim: Count = 64  # number of a head's first dimensions that rotary positions rotate
    num_key_heads: Count = 16  # DeltaNet's heads of queries and keys
    num_value_heads: Count = 32  # DeltaNet's heads of values; a multiple of num_key_heads
    key_dim: Count = 128  # dimensions of DeltaNet's queries and keys
    value_dim: Count = 128  # dimensions of DeltaNet's values
    conv_width: Count = 4  # tokens that DeltaNet's convolution sees, the token itself included
    mlp_dim: Count = 512  # hidden width of one expert
    shared_dim: Count = 512  # hidden width of the shared expert
    num_experts: Count = 512  # routed experts of a layer
    experts_per_token: Count = 10  # routed experts that process a token
    normalized_weights: bool = True  # whether the weights of a token's experts sum to 1
    expert_buffer: NonNegative = 0.0
    "in training, rows for a device's experts, relative to an even share; 0 = no token is dropped"
    load_balancing_loss: NonNegative = 0.001  # coefficient of the loss that balances experts
    router_z_loss: NonNegative = 0.0  # coefficient of the loss that keeps the router's logits small
    max_seq_len: Count = 262_144  # longest sequence, in tokens
    rope_theta: Positive = 10_000_000.0  # base of the rotary frequencies
    rope_scaling: position.RopeScaling = position.RopeScaling()
    norm_eps: NonNegative = 1e-6  # added to the mean square in every RMSNorm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    tied_embeddings: bool = False  # whether the head shares the embedding table
    compute: Compute = Compute()
    pad_vocab: Count = 1  # the tables' rows are padded to a multiple of this; padding rows are never tokens

    LAYERS_ALIKE: ClassVar[bool] = False
    BLOCK_LAYERS: ClassVar[int] = len(LAYERS)
    SIZES: ClassVar[tuple] = (
        *SIZES,
        Multiple("num_layers", len(LAYERS), "three layers of Gated DeltaNet and one of attention form a block"),
        AtMost("rotary_dim", "head_dim"),
        Multiple("rotary_dim", 2, "rotary positions turn pairs of dimensions"),
        Divides("num_key_heads", "num_value_heads"),
        Cut("num_key_heads", "heads"),
        Cut("shared_dim", "mlp"),
        AtMost("experts_per_token", "num_experts"),
        Cut("num_experts", "experts"),
    )

    def inputs(self):
        return {"tokens": None}

    def make(self) -> Model:
        parts = (functools.partial(decoder.enter, embed), block, functools.partial(decoder.leave, head, mixtral.losses))
        return Model(spec(self), parts_of(self, *parts), make_cache=functools.partial(make_cache, self))

    def no_mup(self, depth):
        return "has layers of Gated DeltaNet, for which μP has no rule"

    @property
    def values_per_key(self) -> int:
        """G, the number of value heads that share a key head."""
        return self.num_value_heads // self.num_key_heads

    @classmethod
    def tiny(cls) -> "Qwen3NextConfig":
        sizes = {"vocab_size": 64, "num_layers": 4, "embed_dim": 32, "max_seq_len": 32}
        heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "rotary_dim": 4}
        delta = {"num_key_heads": 2, "num_value_heads": 4, "key_dim": 8, "value_dim": 8}
        return cls(**sizes, **heads, **delta, mlp_dim=16, shared_dim=16, num_experts=4, experts_per_token=2)


def log_uniform(low: float, high: float) -> Init:
    """The logarithm of a uniform distribution."""

    def draw(key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return Init(f"log(uniform({low:.4g}, {high:.4g}))", draw)


def delta_spec(cfg: Qwen3NextConfig) -> params.Tree:
    """Gated DeltaNet.

    qkvz (D, K, 2k + 2Gv): a key head's query, key, values and gates. rate_decay (D, K, 2G). The
    convolution's kernels (K, k, W), (K, k, W), (KG, v, W). log_decay and step_bias (KG,). The
    outputs' norm (v,), and o (KG, v, D).
    """
    init, K, H = normal(cfg.init_std), cfg.num_key_heads, cfg.num_value_heads
    G, k, v = cfg.values_per_key, cfg.key_dim, cfg.value_dim

    def kernel(*shape: int) -> Param:
        # No product reads a channel's taps, so no matrix's optimizer, decay or storage applies.
        return Param((*shape, cfg.conv_width), ("heads", None, None), init, decay=False)

    return {
        "qkvz": Param((cfg.embed_dim, K, 2 * k + 2 * G * v), ("embed", "heads", "head_dim"), init),
        "rate_decay": Param((cfg.embed_dim, K, 2 * G), ("embed", "heads", None), init),
        "q_conv": kernel(K, k),
        "k_conv": kernel(K, k),
        "v_conv": kernel(H, v),
        "log_decay": Param((H,), ("heads",), log_uniform(0.01, 16)),
        "step_bias": Param((H,), ("heads",), ones()),
        "norm": {"scale": Param((v,), ("head_dim",), ones())},
        "o": Param((H, v, cfg.embed_dim), ("heads", "head_dim", "embed"), init),
    }


def attention_spec(cfg: Qwen3NextConfig) -> params.Tree:
    """Attention whose q (D, H, 2h) holds a head's query and the gate of its output."""
    init, h = normal(cfg.init_std), cfg.head_dim
    tree = attention.spec(cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, h, init=init, out_init=init)
    q = Param((cfg.embed_dim, cfg.num_heads, 2 * h), ("embed", "heads", "head_dim"), init)
    return tree | {"q": q, "q_norm": rms_spec(h, "head_dim"), "k_norm": rms_spec(h, "head_dim")}


def layer_spec(cfg: Qwen3NextConfig, name: str) -> params.Tree:
    """One layer: its mixer of tokens, router, routed experts, and a shared expert with its gate."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    return {
        "mixer_norm": rms_spec(D),
        "mixer": delta_spec(cfg) if name in DELTA else attention_spec(cfg),
        "mlp_norm": rms_spec(D),
        "router": moe.router_spec(D, cfg.num_experts, init=init),
        "experts": moe.spec(cfg.num_experts, D, cfg.mlp_dim, init=init, out_init=init),
        "shared": feedforward.swiglu_spec(D, cfg.shared_dim, init=init, out_init=init),
        "shared_gate": Param((D,), ("embed",), init, decay=True),
    }


def spec(cfg: Qwen3NextConfig) -> params.Tree:
    """The table (rows, D), stacked blocks of four layers, the last norm, and an untied head."""
    init = normal(cfg.init_std)
    block = {name: layer_spec(cfg, name) for name in LAYERS}
    tree = {
        "embed": table_spec(cfg, init),
        "layers": params.stack(block, cfg.num_layers // len(LAYERS)),
        "norm": rms_spec(cfg.embed_dim),
    }
    return tree if cfg.tied_embeddings else tree | {"head": table_spec(cfg, init)}


def make_cache(cfg: Qwen3NextConfig, batch_size: int, length: int, dtype) -> decoder.Cache:
    """The declaration of a cache.

    DeltaNet keeps a state and the last W - 1 inputs of its convolution. They have no columns, so a
    row cannot be cut back to fewer tokens.
    """
    blocks, K, G = cfg.num_layers // len(LAYERS), cfg.num_key_heads, cfg.values_per_key
    k, v, rows = cfg.key_dim, cfg.value_dim, ("layers", "batch")
    inputs = (blocks, batch_size, cfg.conv_width - 1, K, 2 * k + G * v)
    delta = {
        "inputs": declared(inputs, (*rows, None, "heads", None), dtype),
        "state": declared((blocks, batch_size, K, G, k, v), (*rows, "heads", None, None, None), "float32"),
    }
    shape = (blocks, batch_size, length, cfg.num_kv_heads, cfg.head_dim)
    keys = declared(shape, (*rows, "seq", "kv_heads", "head_dim"), dtype)
    return decoder.ring({**dict.fromkeys(DELTA, delta), "attention": {"k": keys, "v": keys}}, batch_size, length)


def delta(cfg: Qwen3NextConfig, p, x_BTD, cache, docs: delta_rule.Documents):
    """Gated DeltaNet of x (B, T, D): (its output (B, T, D), the layer's cache)."""
    (B, T), K, G, k, v = x_BTD.shape[:2], cfg.num_key_heads, cfg.values_per_key, cfg.key_dim, cfg.value_dim
    # A recurrence runs through the whole sequence, so each device takes whole rows of some heads.
    mixed = checkpoint_name(linear.project(x_BTD, p["qkvz"]), kept.QKV)
    mixed, gate = jnp.split(constrain(mixed, "batch", None, "heads", None), [2 * k + G * v], axis=-1)
    rate, step = jnp.split(linear.project(x_BTD, p["rate_decay"]).astype(jnp.float32), 2, axis=-1)
    kernel = jnp.concatenate([p["q_conv"], p["k_conv"], p["v_conv"].reshape(K, G * v, -1)], axis=1)
    mixed, inputs = delta_rule.short_convolution(mixed, kernel, docs, cache and cache["inputs"])
    queries, keys, values = jnp.split(mixed, [k, 2 * k], axis=-1)
    bias, speed = (p[name].astype(jnp.float32).reshape(K, G) for name in ("step_bias", "log_decay"))
    decay = -jnp.exp(speed) * jax.nn.softplus(step + bias)
    state = jnp.zeros((B, K, G, k, v)) if cache is None else cache["state"]
    values = values.reshape(B, T, K, G, v)
    y, state = delta_rule.apply(queries, keys, values, decay, jax.nn.sigmoid(rate), docs, state)
    y = norm.rms(p["norm"], y, eps=cfg.norm_eps) * jax.nn.silu(gate.reshape(y.shape).astype(jnp.float32))
    y = attention.project_out({"o": p["o"]}, y.astype(x_BTD.dtype).reshape(B, T, K * G, v))
    return y, None if cache is None else {"inputs": inputs, "state": state}


def attend(cfg: Qwen3NextConfig, p, x_BTD, cache, q_where, k_where, angles, index):
    """Gated attention of x (B, T, D): (its output (B, T, D), the cache's new columns)."""
    q, k, v = attention.qkv({name: p[name] for name in ("q", "k", "v")}, x_BTD)
    q, gate = jnp.split(q, 2, axis=-1)
    q, k = (position.rope(rms(cfg, p[f"{name}_norm"], x), angles) for name, x in (("q", q), ("k", k)))
    new = None if cache is None else {"k": k, "v": v}
    k, v = update_cache(cache, k, v, index)
    h = attention.attend(q, k, v, q_where, k_where, implementation=cfg.compute.attention)
    return attention.project_out({"o": p["o"]}, h * jax.nn.sigmoid(gate)), new


def mixture(cfg: Qwen3NextConfig, p, h_BTD, mask_BT, *, train: bool):
    """Returns (routed experts plus the gated shared one (B, T, D), the layer's load)."""
    routing = moe.route(p["router"], h_BTD, cfg.experts_per_token, normalize=cfg.normalized_weights)
    # Only training drops tokens: elsewhere the output must not depend on other rows.
    y = moe.experts(p["experts"], h_BTD, routing, mask_BT, buffer=cfg.expert_buffer if train else 0.0)
    gate = jax.nn.sigmoid(linear.project(h_BTD, p["shared_gate"]))
    return y + gate[..., None] * feedforward.swiglu(p["shared"], h_BTD), moe.load(routing, mask_BT)


def block(cfg: Qwen3NextConfig, p, x_BTD, xs, q_where, *where, train: bool):
    """Four layers: (x (B, T, D), (the block's cache, with new columns alone, its summed load))."""
    (cache, _), docs, new, loads = xs, delta_rule.documents(q_where), {}, []
    for name in LAYERS:
        layer, old = p[name], cache and cache[name]
        h = rms(cfg, layer["mixer_norm"], x_BTD)
        if name in DELTA:
            h, new[name] = delta(cfg, layer["mixer"], h, old, docs)
        else:
            h, new[name] = attend(cfg, layer["mixer"], h, old, q_where, *where)
        x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
        h = rms(cfg, layer["mlp_norm"], x_BTD)
        h, load = mixture(cfg, layer, h, q_where.segments > 0, train=train)
        x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
        loads.append(load)
    return x_BTD, (cache and new, jax.tree.map(lambda *x: sum(x), *loads))


def embed(cfg: Qwen3NextConfig, p, tokens, positions, rng):
    """Returns (embeddings (B, T, D), None, (rotary angles,)) of tokens and positions (B, T)."""
    angles = position.rope_angles(positions, cfg.rotary_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling)
    return linear.embed(p["embed"], tokens), None, (angles,)


def head(cfg: Qwen3NextConfig, p, x_BTD) -> Head:
    """The inputs of the logits: the normed states (B, T, D) and the table of the head."""
    return Head(
        rms(cfg, p["norm"], x_BTD), p["embed" if cfg.tied_embeddings else "head"]["table"], vocab=cfg.vocab_size
    )


PRESETS = {"qwen3-next-80b-a3b": Qwen3NextConfig()}
