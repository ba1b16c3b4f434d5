"""PixArt's tensor names and config.json, as in diffusers' PixArtTransformer2DModel."""

from bigmodel_jax.models.pixart import PixArtConfig
from bigmodel_jax.pretrained.clip import dense
from bigmodel_jax.pretrained.dit import modulation
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import CONV, VECTOR, Row, linear

LAYER = "transformer_blocks.{i}."


def attention_rows(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one attention. ours: its parameter path; theirs: its module name."""
    names = {"q": "to_q", "k": "to_k", "v": "to_v"}
    return (
        *(Row(f"{ours}/{n}", f"{theirs}.{name}.weight", linear()) for n, name in names.items()),
        *(Row(f"{ours}/{n}_bias", f"{theirs}.{name}.bias", VECTOR) for n, name in names.items()),
        Row(f"{ours}/o", f"{theirs}.to_out.0.weight", linear(in_dims=2)),
        Row(f"{ours}/o_bias", f"{theirs}.to_out.0.bias"),
    )


ROWS = (
    Row("patches/kernel", "pos_embed.proj.weight", CONV),
    Row("patches/bias", "pos_embed.proj.bias"),
    *dense("time/up", "adaln_single.emb.timestep_embedder.linear_1"),
    *dense("time/down", "adaln_single.emb.timestep_embedder.linear_2"),
    *modulation("time_modulation", "adaln_single.linear"),
    *dense("text_projection/up", "caption_projection.linear_1"),
    *dense("text_projection/down", "caption_projection.linear_2"),
    Row("layers/modulation", LAYER + "scale_shift_table"),
    *attention_rows("layers/attn", LAYER + "attn1"),
    *attention_rows("layers/text_attn", LAYER + "attn2"),
    *dense("layers/mlp/up", LAYER + "ff.net.0.proj"),
    *dense("layers/mlp/down", LAYER + "ff.net.2"),
    Row("modulation", "scale_shift_table"),
    *dense("head", "proj_out"),
)
FIXED = {
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
}


def from_hf(hf: dict) -> PixArtConfig:
    """The PixArtConfig that a config.json of diffusers' PixArtTransformer2DModel describes.

    Raises ValueError for embeddings of size and aspect ratio (`use_additional_conditions`).
    """
    size, channels, scale = hf["sample_size"], hf["in_channels"], hf.get("interpolation_scale")
    sized = hf.get("use_additional_conditions")
    if (size == 128) if sized is None else sized:  # diffusers' rule where the key is missing
        raise ValueError(
            "config.json: use_additional_conditions = true is not supported (embeddings of size and aspect ratio); "
            "supported: false"
        )
    width = hf["num_attention_heads"] * hf["attention_head_dim"]
    # A model that learns the variance has twice the channels.
    check_fixed(hf, **FIXED, cross_attention_dim=width, out_channels=(2 * channels, channels))
    return PixArtConfig(
        image_shape=(size, size, channels),
        patch_size=hf["patch_size"],
        num_layers=hf["num_layers"],
        embed_dim=width,
        num_heads=hf["num_attention_heads"],
        text_dim=hf["caption_channels"],
        # Where the file gives no scale, diffusers computes this one.
        position_scale=float(max(size // 64, 1) if scale is None else scale),
        learn_sigma=hf.get("out_channels", 2 * channels) == 2 * channels,
        **{name: hf[name] for name in ("text_dropout", "zero_init") if name in hf},
    )


def to_hf(cfg: PixArtConfig) -> dict:
    """The config.json of diffusers' PixArtTransformer2DModel.

    Raises ValueError for images that are not square.
    """
    height, width, channels = cfg.image_shape
    if height != width:
        raise ValueError(f"model.image_shape = {cfg.image_shape}: diffusers' config.json has square images only")
    return {
        "_class_name": "PixArtTransformer2DModel",
        "sample_size": height,
        "patch_size": cfg.patch_size,
        "in_channels": channels,
        "out_channels": cfg.out_channels,
        "num_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "attention_head_dim": cfg.embed_dim // cfg.num_heads,
        "cross_attention_dim": cfg.embed_dim,
        "caption_channels": cfg.text_dim,
        "interpolation_scale": cfg.position_scale,
        "use_additional_conditions": False,
        **FIXED,
        "text_dropout": cfg.text_dropout,  # this key and the next are ours; diffusers ignores them
        "zero_init": cfg.zero_init,
    }


PIXART = Family("PixArtTransformer2DModel", PixArtConfig, from_hf, to_hf, ROWS)
