"""Whisper: a speech recogniser with a spectrogram encoder and a text decoder.

Radford et al., arXiv:2212.04356. Two convolutions halve the number of frames. The encoder's
positions are sinusoids, and the decoder's are learned. Both stacks are pre-norm. Keys have no bias.
The decoder's embedding table is its head. No frame is masked: the published models were trained
with silence that fills up the window.

Shapes: B batch, T decoder tokens, M frames of the spectrogram, F mel bins, S encoder positions M /
2, D embed, H heads, h head_dim, V vocab.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder, encoder_decoder, prenorm
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.encoder_decoder import Cache, attend_memory
from bigmodel_jax.models.sizes import Divides, Multiple
from bigmodel_jax.nn import convolution, feedforward, linear, norm, stack
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.nn.head import Head

WIDTH = 3  # kernel width of both convolutions; the second one has stride 2


@dataclasses.dataclass(frozen=True)
class WhisperConfig(ModelConfig):
    """Whisper (Radford et al., arXiv:2212.04356); defaults: Whisper base for English.

    The reference implementation is transformers' `WhisperForConditionalGeneration`.
    """

    num_mels: Count = 80  # mel bins of a frame
    vocab_size: Count = 51_864  # tokens in the vocabulary
    num_layers: Depth = 6  # layers of the encoder
    num_decoder_layers: Depth = 6  # layers of the decoder
    embed_dim: Count = 512  # width of the residual stream
    num_heads: Count = 8  # attention heads of a layer
    mlp_dim: Count = 2048  # hidden width of the feed-forward layer
    max_audio_len: Count = 1500  # positions of the encoder, 20 ms each: 30 seconds
    max_seq_len: Count = 448  # positions of the decoder, in tokens
    activation: Activation = "gelu"  # activation of the feed-forward layer
    norm_eps: NonNegative = 1e-5  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    decoder_start_token_id: CountOrZero = 50_257  # token that the decoder's input begins with
    eos_token_id: CountOrZero = 50_256  # token that ends a text
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (
        Divides("num_heads", "embed_dim"),
        Multiple("embed_dim", 2, "half of it are sines, half cosines"),
        *encoder_decoder.SIZES,
    )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def inputs(self):
        return {"log_mel": None, "tokens": None}

    def no_mup(self, depth):
        return "has convolutions, for which there are no width rules"

    def make(self) -> Model:
        return Model(
            spec=spec(self),
            apply=functools.partial(apply, self),
            make_cache=functools.partial(make_cache, self),
            decoder_start=self.decoder_start_token_id,
        )

    @classmethod
    def tiny(cls) -> "WhisperConfig":
        sizes = {"num_layers": 2, "num_decoder_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64}
        lengths = {"max_audio_len": 16, "max_seq_len": 32}
        return cls(
            num_mels=8, vocab_size=64, decoder_start_token_id=1, eos_token_id=0, init_std=0.1, **sizes, **lengths
        )


def attention_spec(cfg: WhisperConfig) -> params.Tree:
    """q, k, v (D, H, h) and o (H, h, D), with biases except for the keys."""
    init, D, H = normal(cfg.init_std), cfg.embed_dim, cfg.num_heads
    tree = attention.spec(D, H, H, cfg.head_dim, init=init, out_init=init, bias=True)
    return {name: p for name, p in tree.items() if name != "k_bias"}


def block_spec(cfg: WhisperConfig, cross: bool) -> params.Tree:
    """One pre-norm layer: attention, with `cross` also cross-attention, and an MLP."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    tree = {"attn_norm": norm.layer_spec(D), "attn": attention_spec(cfg)}
    if cross:
        tree |= {"cross_norm": norm.layer_spec(D), "cross": attention_spec(cfg)}
    return tree | {
        "mlp_norm": norm.layer_spec(D),
        "mlp": feedforward.mlp_spec(D, cfg.mlp_dim, init=init, out_init=init),
    }


def spec(cfg: WhisperConfig) -> params.Tree:
    """The convolutions, the encoder, table (V, D), positions (max_seq_len, D), and the decoder."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    return {
        "conv1": convolution.dense_spec(WIDTH, cfg.num_mels, D, init=init),
        "conv2": convolution.dense_spec(WIDTH, D, D, init=init),
        "encoder": params.stack(block_spec(cfg, cross=False), cfg.num_layers),
        "encoder_norm": norm.layer_spec(D),
        "embed": linear.embedding_spec(cfg.vocab_size, D, init=init),
        "positions": Param((cfg.max_seq_len, D), (None, "embed"), init),
        "decoder": params.stack(block_spec(cfg, cross=True), cfg.num_decoder_layers),
        "decoder_norm": norm.layer_spec(D),
    }


def sinusoids(cfg: WhisperConfig) -> np.ndarray:
    """Returns (max_audio_len, D) float32: sines in the first half, cosines in the second.

    The wavelengths run from 2 pi to 20,000 pi.
    """
    half = cfg.embed_dim // 2
    rates = np.exp(-np.log(10_000) * np.arange(half) / max(half - 1, 1))
    turns = np.arange(cfg.max_audio_len)[:, None] * rates
    return np.concatenate([np.sin(turns), np.cos(turns)], axis=1).astype(np.float32)


def make_cache(cfg: WhisperConfig, batch_size: int, length: int, dtype: Any) -> Cache:
    """The declaration of a cache for `length` decoder tokens and one window of audio per row."""
    made = encoder_decoder.make_cache(cfg, batch_size, length, dtype)
    shape = (cfg.num_decoder_layers, batch_size, cfg.max_audio_len, cfg.num_heads, cfg.head_dim)
    memory = dict.fromkeys("kv", decoder.declared(shape, ("layers", "batch", None, "heads", "head_dim"), dtype))
    places = decoder.declared((batch_size, cfg.max_audio_len), ("batch", None), jnp.int32)
    return made._replace(memory=memory, memory_where=Where(places, places))


def encode(cfg: WhisperConfig, p: params.Tree, log_mel_BMF: jax.Array) -> jax.Array:
    """Returns (B, S, D): the encoder's output for a spectrogram (B, M, F).

    Raises ValueError unless M is even and at most 2 max_audio_len.
    """
    act, M = ACTIVATIONS["gelu"], log_mel_BMF.shape[1]  # the convolutions have GELU, whatever cfg.activation is
    if M % 2 or 2 * cfg.max_audio_len < M:
        raise ValueError(f"log_mel has {M} frames; it must be an even number of at most {2 * cfg.max_audio_len}")
    x = act(convolution.dense(p["conv1"], log_mel_BMF.astype(p["conv1"]["kernel"].dtype)))
    x = act(convolution.dense(p["conv2"], x, stride=2))
    x_BSD = constrain(x + jnp.asarray(sinusoids(cfg)[: M // 2], x.dtype), "batch", "seq", "embed")
    return norm.layer(p["encoder_norm"], prenorm.encode(cfg, p["encoder"], x_BSD), eps=cfg.norm_eps)


def block(cfg: WhisperConfig, p, x_BTD, caches, q_where, k_where, memory_BSD, memory_where, *, index):
    """One decoder layer: (x (B, T, D), (its keys and values, the memory's)).

    caches: (own, memory). They, and the second result, are None outside decoding.
    """
    own, cached = caches
    options = {"implementation": cfg.compute.attention}
    q, k, v = attention.qkv(p["attn"], norm.layer(p["attn_norm"], x_BTD, eps=cfg.norm_eps))
    k, v = decoder.update_cache(own, k, v, index)
    h = attention.attend(q, k, v, q_where, k_where, causal=True, **options)
    x_BTD = constrain(x_BTD + attention.project_out(p["attn"], h), "batch", "seq", "embed")
    h = norm.layer(p["cross_norm"], x_BTD, eps=cfg.norm_eps)
    h, kv = attend_memory(p["cross"], h, memory_BSD, cached, q_where, memory_where, **options)
    x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
    h = feedforward.mlp(p["mlp"], norm.layer(p["mlp_norm"], x_BTD, eps=cfg.norm_eps), ACTIVATIONS[cfg.activation])
    return constrain(x_BTD + h, "batch", "seq", "embed"), None if own is None else ({"k": k, "v": v}, kv)


def memory_places(q_where: Where, length: int) -> Where:
    """Where the encoder's positions stand: all in segment 1, which every token but padding sees."""
    shape = (q_where.segments.shape[0], length)
    return Where(jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape), jnp.ones(shape, jnp.int32))


def apply(cfg: WhisperConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, T, V) float32 of the decoder.

    batch: log_mel (B, M, F); tokens, positions and segment_ids (B, T). A row is one recording: its
    tokens have segment id 1, and padding 0. With a cache, the first call encodes. Later calls omit
    log_mel.
    """
    if "log_mel" not in batch and cache is None:
        raise ValueError(f"batch has {', '.join(batch)}, but no log_mel: Whisper needs data of recordings")
    q_where, k_where, own = decoder.where(batch, cache and cache.own)
    # Later calls of a generation read the encoder's keys and values from the cache.
    if "log_mel" in batch:
        memory = encode(cfg, p, batch["log_mel"])
        memory_where = memory_places(q_where, memory.shape[1])
    else:
        memory, memory_where = None, cache.memory_where
    x_BTD = linear.embed(p["embed"], batch["tokens"])
    x_BTD = constrain(x_BTD + jnp.take(p["positions"], q_where.positions, axis=0), "batch", "seq", "embed")

    def body(layer, x, caches, *where):
        return block(cfg, layer, x, caches, *where, index=own and own.index)

    shared, xs = (
        (q_where, k_where, memory, memory_where),
        (own and own.layers, cache.memory if memory is None else None),
    )
    x_BTD, kv = stack.run(
        body, p["decoder"], x_BTD, xs, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll
    )
    head = Head(norm.layer(p["decoder_norm"], x_BTD, eps=cfg.norm_eps), p["embed"]["table"])
    if cache is not None:
        cache = cache._replace(own=own.advance(kv[0], x_BTD.shape[1]), memory=kv[1], memory_where=memory_where)
    return Out(head.logits(), cache=cache, head=head)


BASE_EN = WhisperConfig()
BASE = dataclasses.replace(BASE_EN, vocab_size=51_865, decoder_start_token_id=50_258, eos_token_id=50_257)


def _sized(base: WhisperConfig, layers: int, dim: int, **fields) -> WhisperConfig:
    sizes = {"num_layers": layers, "num_decoder_layers": layers, "embed_dim": dim, "num_heads": dim // 64}
    return dataclasses.replace(base, mlp_dim=4 * dim, **{**sizes, **fields})


SIZES_OF = {"tiny": (4, 384), "base": (6, 512), "small": (12, 768), "medium": (24, 1024)}
LARGE = _sized(BASE, 32, 1280)
LARGE_V3 = dataclasses.replace(LARGE, num_mels=128, vocab_size=51_866)
PRESETS = {
    **{f"whisper-{name}": _sized(BASE, *size) for name, size in SIZES_OF.items()},
    **{f"whisper-{name}.en": _sized(BASE_EN, *size) for name, size in SIZES_OF.items()},
    "whisper-large-v2": LARGE,
    "whisper-large-v3": LARGE_V3,
    "whisper-large-v3-turbo": dataclasses.replace(LARGE_V3, num_decoder_layers=4),
}
