"""The autoencoder's tensor names and config.json, as in diffusers' AutoencoderKL. Each block has
rows of its own, since blocks differ in shape.
"""

from bigmodel_jax.models.autoencoder import MOST_LEVELS, AutoencoderConfig
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import CONV, Row, dense, layer_norm

MOST_BLOCKS = 10  # residual blocks of a level; the published ones have 2 or 3
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def conv(ours: str, theirs: str) -> tuple[Row, ...]:
    """The two name-table rows of a convolution: its kernel and its bias."""
    return Row(f"{ours}/kernel", f"{theirs}.weight", CONV), Row(f"{ours}/bias", f"{theirs}.bias")


def block(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one residual block and its shortcut."""
    return (
        *layer_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        *conv(f"{ours}/conv1", f"{theirs}.conv1"),
        *layer_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *conv(f"{ours}/conv2", f"{theirs}.conv2"),
        *conv(f"{ours}/shortcut", f"{theirs}.conv_shortcut"),
    )


def half(ours: str, levels: str, resize: tuple[str, str], latent: str) -> tuple[Row, ...]:
    """The name-table rows of the encoder or of the decoder, whose parts have the same names in
    files.
    """
    middle, attention = f"{ours}.mid_block", f"{ours}.mid_block.attentions.0"
    maps = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return (
        *conv(f"{ours}/enter", f"{ours}.conv_in"),
        *(
            row
            for n in range(MOST_LEVELS)
            # A level of the decoder has one block more than a level of the encoder.
            for m in range(MOST_BLOCKS + 1)
            for row in block(f"{ours}/level{n}/block{m}", f"{ours}.{levels}.{n}.resnets.{m}")
        ),
        *(
            row
            for n in range(MOST_LEVELS)
            for row in conv(f"{ours}/level{n}/{resize[0]}", f"{ours}.{levels}.{n}.{resize[1]}.0.conv")
        ),
        *block(f"{ours}/middle/block0", f"{middle}.resnets.0"),
        *layer_norm(f"{ours}/middle/attention/norm", f"{attention}.group_norm"),
        *(
            row
            for name, theirs in maps.items()
            for row in dense(f"{ours}/middle/attention/{name}", f"{attention}.{theirs}")
        ),
        *block(f"{ours}/middle/block1", f"{middle}.resnets.1"),
        *layer_norm(f"{ours}/norm", f"{ours}.conv_norm_out"),
        *conv(f"{ours}/leave", f"{ours}.conv_out"),
        *conv(f"{ours}/latent", latent),
    )


ROWS = (
    *half("encoder", "down_blocks", ("narrow", "downsamplers"), "quant_conv"),
    *half("decoder", "up_blocks", ("widen", "upsamplers"), "post_quant_conv"),
)
# Names of the attention in files that were written before diffusers 0.16.
RENAMED = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def from_hf(hf: dict) -> AutoencoderConfig:
    """The AutoencoderConfig that a config.json of diffusers' AutoencoderKL describes.

    The keys scaling_factor and shift_factor do not describe the autoencoder. A run on its latents
    has them as `objective.latent_scale` and `objective.latent_offset`.
    """
    channels, size = tuple(hf["block_out_channels"]), hf["sample_size"]
    check_fixed(hf, act_fn="silu", latents_mean=None, latents_std=None, out_channels=(hf["in_channels"], None))
    # diffusers' own default is one down block and one up block.
    types = {"down_block_types": hf.get("down_block_types", [DOWN]), "up_block_types": hf.get("up_block_types", [UP])}
    check_fixed(types, down_block_types=[DOWN] * len(channels), up_block_types=[UP] * len(channels))
    # Our config has one flag for both convolutions at the latents.
    check_fixed(hf, use_post_quant_conv=hf.get("use_quant_conv", True))
    # The name table has no rows for further blocks.
    if hf["layers_per_block"] > MOST_BLOCKS:
        raise ValueError(f"config.json: layers_per_block = {hf['layers_per_block']} is above {MOST_BLOCKS}")
    return AutoencoderConfig(
        image_shape=(size, size, hf["in_channels"]),
        channels=channels,
        blocks_per_level=hf["layers_per_block"],
        latent_channels=hf["latent_channels"],
        norm_groups=hf["norm_num_groups"],
        latent_convolutions=hf.get("use_quant_conv", True),
        attention=hf.get("mid_block_add_attention", True),
    )


def to_hf(cfg: AutoencoderConfig) -> dict:
    """The config.json of diffusers' AutoencoderKL for this config. Its scaling_factor is 1 and it
    has no shift, so latents keep their values.
    """
    height, width, colors = cfg.image_shape
    if height != width:
        raise ValueError(f"model.image_shape = {cfg.image_shape}: diffusers' config.json has square images only")
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": height,
        "in_channels": colors,
        "out_channels": colors,
        "block_out_channels": list(cfg.channels),
        "down_block_types": [DOWN] * len(cfg.channels),
        "up_block_types": [UP] * len(cfg.channels),
        "layers_per_block": cfg.blocks_per_level,
        "latent_channels": cfg.latent_channels,
        "norm_num_groups": cfg.norm_groups,
        "act_fn": "silu",
        "scaling_factor": 1.0,
        "shift_factor": None,
        "use_quant_conv": cfg.latent_convolutions,
        "use_post_quant_conv": cfg.latent_convolutions,
        "mid_block_add_attention": cfg.attention,
    }


AUTOENCODER = Family("AutoencoderKL", AutoencoderConfig, from_hf, to_hf, ROWS, renamed=RENAMED)
