"""SigLIP: image and text towers trained with a sigmoid loss per pair (arXiv:2303.15343).

Attention pools the image's states. Shapes: B batch, H height, W width, C channels, T tokens or
patches, D embed, F mlp, P patch side, L layers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, constant, normal
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.clip import TextTower, Tower, VisionTower, normalised, text_spec, text_states
from bigmodel_jax.nn import feedforward, linear, norm
from bigmodel_jax.nn.activations import ACTIVATIONS
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where

SIZES = {"activation": "gelu_tanh", "norm_eps": 1e-6}
BASE = {"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072, **SIZES}


@dataclasses.dataclass(frozen=True)
class SiglipConfig(ModelConfig):
    """SigLIP (Zhai et al., arXiv:2303.15343); defaults: B/16 at 224 pixels.

    The reference implementation is transformers' `SiglipModel`. Both towers end in vectors of
    vision.embed_dim dimensions.
    """

    vision: VisionTower = VisionTower(patch_size=16, **BASE)
    text: TextTower = TextTower(vocab_size=32_000, max_seq_len=64, **BASE)
    logit_scale_init: float = 2.302585  # initial log of the logits' scale: ln 10
    logit_bias_init: float = -10.0  # initial bias of the logits: nearly all pairs do not match (section 3.2)

    def inputs(self):
        return {"image": self.vision.image_shape, "tokens": None}

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "SiglipConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, **SIZES}
        return cls(
            vision=VisionTower(image_shape=(8, 8, 1), patch_size=4, **sizes),
            text=TextTower(vocab_size=64, max_seq_len=16, **sizes),
        )


def lecun(fan_in: int) -> Init:
    """A normal distribution truncated at two standard deviations, with variance 1 / fan_in."""
    scale = fan_in**-0.5 / 0.87962566103423978

    def draw(key, shape, dtype):
        return scale * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return Init(f"lecun({fan_in**-0.5:.4g})", draw)


def mlp_spec(dim: int, mlp_dim: int) -> params.Tree:
    """up (D, F) and down (F, D), initialised as in SiglipPreTrainedModel._init_weights.

    Biases start as noise of standard deviation 1e-6.
    """
    tree = feedforward.mlp_spec(dim, mlp_dim, init=prenorm.xavier(dim, mlp_dim), out_init=prenorm.xavier(mlp_dim, dim))
    return {n: layer | {"bias": dataclasses.replace(layer["bias"], init=normal(1e-6))} for n, layer in tree.items()}


def layers_spec(tower: Tower) -> params.Tree:
    """The tower's stacked layers, with Glorot's uniform initial values."""
    D, F = tower.embed_dim, tower.mlp_dim
    block = prenorm.block_spec(
        tower, qkv=prenorm.xavier(D, D), out=prenorm.xavier(D, D), up=prenorm.xavier(D, F), down=prenorm.xavier(F, D)
    )
    return params.stack(block | {"mlp": mlp_spec(D, F)}, tower.num_layers)


def pool_spec(tower: VisionTower) -> params.Tree:
    """The attention pooling: a learned query "probe" (1, D), attention, a norm and an MLP."""
    D, H = tower.embed_dim, tower.num_heads
    return {
        "probe": Param((1, D), (None, "embed"), prenorm.xavier(D, 1), decay=False),
        # The initial values are those of one (3 D, D) matrix for queries, keys and values.
        "attn": attention.spec(D, H, H, D // H, init=prenorm.xavier(D, 3 * D), out_init=lecun(D), bias=True),
        "norm": norm.layer_spec(D),
        "mlp": mlp_spec(D, tower.mlp_dim),
    }


def vision_spec(tower: VisionTower) -> params.Tree:
    """patches (P, P, C, D), positions (patches, D), the layers, the last norm and the pooling."""
    D, num = tower.embed_dim, prenorm.num_patches(tower.image_shape, tower.patch_size)
    channels = tower.image_shape[2]
    init = lecun(tower.patch_size**2 * channels)
    return {
        "patches": prenorm.patch_spec(tower.patch_size, channels, D, init=init),
        "positions": Param((num, D), (None, "embed"), normal(D**-0.5), decay=False),
        "layers": layers_spec(tower),
        "norm": norm.layer_spec(D),
        "pool": pool_spec(tower),
    }


def spec(cfg: SiglipConfig) -> params.Tree:
    """Both towers, the text's projection "head", logit_scale (1,) and logit_bias (1,)."""
    text, width = cfg.text, cfg.text.embed_dim
    head = linear.linear_spec(width, cfg.vision.embed_dim, axes=("embed", None), init=lecun(width), bias=True)
    return {
        "vision": vision_spec(cfg.vision),
        "text": text_spec(text, layers_spec(text), normal(width**-0.5)) | {"head": head},
        "logit_scale": Param((1,), (None,), constant(cfg.logit_scale_init)),
        "logit_bias": Param((1,), (None,), constant(cfg.logit_bias_init)),
    }


def pool(tower: VisionTower, p, x_BTD) -> jax.Array:
    """Returns (B, D): a learned query attends to all patches (B, T, D), and an MLP follows."""
    B, T, D = x_BTD.shape
    query = jnp.broadcast_to(p["probe"].astype(x_BTD.dtype), (B, 1, D))
    q = linear.project(query, p["attn"]["q"]) + p["attn"]["q_bias"]
    k = linear.project(x_BTD, p["attn"]["k"]) + p["attn"]["k_bias"]
    v = linear.project(x_BTD, p["attn"]["v"]) + p["attn"]["v_bias"]
    here, there = (Where(jnp.zeros((B, n), jnp.int32), jnp.ones((B, n), jnp.int32)) for n in (1, T))
    h = attention.attend(q, k, v, here, there, causal=False, implementation=tower.compute.attention)
    h = attention.project_out(p["attn"], h)
    mlp = feedforward.mlp(p["mlp"], norm.layer(p["norm"], h, eps=tower.norm_eps), ACTIVATIONS[tower.activation])
    return (h + mlp)[:, 0]


def image_states(tower: VisionTower, p, image_BHWC) -> jax.Array:
    """Returns (B, patches, D): the output of the tower's layers, before the last norm."""
    x_BTD = constrain(prenorm.embed_patches(p["patches"], image_BHWC) + p["positions"], "batch", "seq", "embed")
    return prenorm.encode(tower, p["layers"], x_BTD)


def encode_image(cfg: SiglipConfig, p, image_BHWC) -> jax.Array:
    """Returns (B, D): the image's embedding, not normalised."""
    x_BTD = image_states(cfg.vision, p, image_BHWC)
    return pool(cfg.vision, p["pool"], norm.layer(p["norm"], x_BTD, eps=cfg.vision.norm_eps))


def encode_text(cfg: SiglipConfig, p, batch) -> jax.Array:
    """Returns (B, D): the text's embedding, not normalised, from the state of the last place.

    The last place may be padding, as in the training of the published models.
    """
    return linear.linear(p["head"], text_states(cfg.text, p, {"tokens": batch["tokens"]}, causal=False)[:, -1])


def apply(cfg: SiglipConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Returns (B, 2, D) float32: the embeddings of image and text, each of length 1.

    batch: image (B, H, W, C) and tokens (B, T). `Contrastive(kind="sigmoid")` compares the
    embeddings under the parameters "logit_scale" and "logit_bias".
    """
    image, text = encode_image(cfg, p["vision"], batch["image"]), encode_text(cfg, p["text"], batch)
    return Out(jnp.stack([normalised(image), normalised(text)], axis=1))


LARGE = {"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096, **SIZES}
SO400M = {"num_layers": 27, "embed_dim": 1152, "num_heads": 16, "mlp_dim": 4304, **SIZES}
PRESETS = {
    "siglip-b/16-224": SiglipConfig(),
    "siglip-l/16-256": SiglipConfig(
        vision=VisionTower(image_shape=(256, 256, 3), patch_size=16, **LARGE),
        text=TextTower(vocab_size=32_000, max_seq_len=64, **LARGE),
    ),
    "siglip-so400m/14-384": SiglipConfig(
        vision=VisionTower(image_shape=(384, 384, 3), patch_size=14, **SO400M),
        text=TextTower(vocab_size=32_000, max_seq_len=64, **SO400M),
    ),
}
