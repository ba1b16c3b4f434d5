"""DiT's tensor names, as in the published weights of facebookresearch/DiT.

transformers has no such architecture, so config.json holds the fields of our config under the
architecture name "DiT".
"""

import dataclasses

from bigmodel_jax.models.dit import DiTConfig, positions
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.names import CONV, VECTOR, Row, dense, linear

LAYER, QKV = "blocks.{i}.", ("layers/attn/q", "layers/attn/k", "layers/attn/v")


def modulation(ours: str, theirs: str) -> tuple[Row, Row]:
    """The two name-table rows of a linear layer for shifts, scales and gates, whose bias is flat in
    their files.
    """
    return Row(f"{ours}/kernel", f"{theirs}.weight", linear()), Row(f"{ours}/bias", f"{theirs}.bias", VECTOR)


ROWS = (
    Row("patches/kernel", "x_embedder.proj.weight", CONV),
    Row("patches/bias", "x_embedder.proj.bias"),
    *dense("time/up", "t_embedder.mlp.0"),
    *dense("time/down", "t_embedder.mlp.2"),
    Row("labels/table", "y_embedder.embedding_table.weight"),
    Row(QKV, LAYER + "attn.qkv.weight", linear()),
    Row(tuple(f"{path}_bias" for path in QKV), LAYER + "attn.qkv.bias", VECTOR),
    Row("layers/attn/o", LAYER + "attn.proj.weight", linear(in_dims=2)),
    Row("layers/attn/o_bias", LAYER + "attn.proj.bias"),
    *dense("layers/mlp/up", LAYER + "mlp.fc1"),
    *dense("layers/mlp/down", LAYER + "mlp.fc2"),
    *modulation("layers/modulation", LAYER + "adaLN_modulation.1"),
    *modulation("modulation", "final_layer.adaLN_modulation.1"),
    *dense("head", "final_layer.linear"),
)
IGNORED = ("pos_embed",)  # fixed sinusoids, which our model computes
COPIES = (("pos_embed", lambda cfg: positions(cfg)[None]),)


def from_hf(hf: dict) -> DiTConfig:
    """The DiTConfig whose fields a config.json holds. Missing fields keep our defaults."""
    names = (
        "num_classes",
        "patch_size",
        "num_layers",
        "embed_dim",
        "num_heads",
        "label_dropout",
        "learn_sigma",
        "zero_init",
    )
    return DiTConfig(image_shape=tuple(hf["image_shape"]), **{name: hf[name] for name in names if name in hf})


def to_hf(cfg: DiTConfig) -> dict:
    """The config.json: every field of the config but `compute`, by our names."""
    ours = {name: x for name, x in dataclasses.asdict(cfg).items() if name != "compute"}
    return {"model_type": "dit", **ours, "image_shape": list(cfg.image_shape)}


DIT = Family("DiT", DiTConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
