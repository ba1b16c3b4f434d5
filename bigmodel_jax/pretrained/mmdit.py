"""MM-DiT's tensor names and config.json, as in diffusers' SD3Transformer2DModel."""

from bigmodel_jax.models.mmdit import MMDiTConfig, positions
from bigmodel_jax.pretrained.dit import modulation
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import CONV, VECTOR, Row, dense, linear

# Modules inside a layer's `attn`: queries, keys, values, output, norm of queries, norm of keys.
IMAGE = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k")


def stream_rows(ours: str, names: tuple[str, ...], suffix: str, start: str | int) -> tuple[Row, ...]:
    """The name-table rows of the image's or the text's stream, in the stack of layers or in the
    last layer.

    ours: the stream's path; names: IMAGE or TEXT; suffix: "" or "_context", which marks the text's
    modules; start: the number of the stack's first layer, or the config field that holds it.
    """
    layer = "transformer_blocks.{i}."
    attn = f"{layer}attn."
    of_qkv = dict(zip("qkv", names[:3], strict=True))
    rows = (
        *modulation(f"{ours}/modulation", f"{layer}norm1{suffix}.linear"),
        *(Row(f"{ours}/attn/{n}", f"{attn}{name}.weight", linear()) for n, name in of_qkv.items()),
        *(Row(f"{ours}/attn/{n}_bias", f"{attn}{name}.bias", VECTOR) for n, name in of_qkv.items()),
        Row(f"{ours}/attn/o", f"{attn}{names[3]}.weight", linear(in_dims=2)),
        Row(f"{ours}/attn/o_bias", f"{attn}{names[3]}.bias"),
        Row(f"{ours}/attn/q_norm/scale", f"{attn}{names[4]}.weight"),
        Row(f"{ours}/attn/k_norm/scale", f"{attn}{names[5]}.weight"),
        *dense(f"{ours}/mlp/up", f"{layer}ff{suffix}.net.0.proj"),
        *dense(f"{ours}/mlp/down", f"{layer}ff{suffix}.net.2"),
    )
    return tuple(Row(row.ours, row.theirs, row.layout, start=start) for row in rows)


ROWS = (
    Row("patches/kernel", "pos_embed.proj.weight", CONV),
    Row("patches/bias", "pos_embed.proj.bias"),
    *dense("time/up", "time_text_embed.timestep_embedder.linear_1"),
    *dense("time/down", "time_text_embed.timestep_embedder.linear_2"),
    *dense("pooled/up", "time_text_embed.text_embedder.linear_1"),
    *dense("pooled/down", "time_text_embed.text_embedder.linear_2"),
    *dense("text_projection", "context_embedder"),
    *stream_rows("layers/image", IMAGE, "", 0),
    *stream_rows("layers/text", TEXT, "_context", 0),
    *stream_rows("last/image", IMAGE, "", "last_layer"),
    *stream_rows("last/text", TEXT, "_context", "last_layer"),
    *modulation("modulation", "norm_out.linear"),
    *dense("head", "proj_out"),
)
IGNORED = ("pos_embed.pos_embed",)  # fixed sinusoids, which our model computes
# diffusers reads the sinusoids from its files, so an import compares them with ours.
COPIES = (("pos_embed.pos_embed", lambda cfg: positions(cfg)[None]),)
NORMS = {False: None, True: "rms_norm"}


def from_hf(hf: dict) -> MMDiTConfig:
    """The MMDiTConfig that a config.json of diffusers' SD3Transformer2DModel describes.

    Raises ValueError for layers with a second attention (`dual_attention_layers`).
    """
    size, channels = hf["sample_size"], hf["in_channels"]
    width = hf["num_attention_heads"] * hf["attention_head_dim"]
    fixed = {"caption_projection_dim": width, "out_channels": (channels, None), "qk_norm": tuple(NORMS.values())}
    check_fixed(hf, **fixed)
    if hf.get("dual_attention_layers") not in (None, [], ()):
        raise ValueError(
            f"config.json: dual_attention_layers = {hf['dual_attention_layers']} is not supported (a second attention in "
            "each of these layers); supported: []"
        )
    return MMDiTConfig(
        image_shape=(size, size, channels),
        patch_size=hf["patch_size"],
        num_layers=hf["num_layers"],
        embed_dim=width,
        num_heads=hf["num_attention_heads"],
        text_dim=hf["joint_attention_dim"],
        pooled_dim=hf["pooled_projection_dim"],
        qk_norm=hf.get("qk_norm") is not None,
        position_grid=hf["pos_embed_max_size"],
        **{name: hf[name] for name in ("text_dropout", "zero_init") if name in hf},
    )


def to_hf(cfg: MMDiTConfig) -> dict:
    """The config.json of diffusers' SD3Transformer2DModel.

    Raises ValueError for images that are not square.
    """
    height, width, channels = cfg.image_shape
    if height != width:
        raise ValueError(f"model.image_shape = {cfg.image_shape}: diffusers' config.json has square images only")
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": height,
        "patch_size": cfg.patch_size,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "attention_head_dim": cfg.embed_dim // cfg.num_heads,
        "joint_attention_dim": cfg.text_dim,
        "caption_projection_dim": cfg.embed_dim,
        "pooled_projection_dim": cfg.pooled_dim,
        "pos_embed_max_size": cfg.position_grid,
        "dual_attention_layers": [],
        "qk_norm": NORMS[cfg.qk_norm],
        "text_dropout": cfg.text_dropout,  # this key and the next are ours; diffusers ignores them
        "zero_init": cfg.zero_init,
    }


MMDIT = Family("SD3Transformer2DModel", MMDiTConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES, computed=COPIES)
