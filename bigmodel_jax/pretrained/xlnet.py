"""XLNet's tensor names and config.json.

Its attention tensors have a separate axis for heads, as ours do.
"""

import functools

from bigmodel_jax.models.xlnet import XLNetConfig
from bigmodel_jax.pretrained.bert import without_prefix
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head
from bigmodel_jax.pretrained.names import VECTOR, Layout, Row, linear

ATTENTION = "transformer.layer.{i}.rel_attn."
OUTPUT = Layout(
    ours=lambda x, _: x.transpose(1, 2, 0), theirs=lambda x: x.transpose(2, 0, 1)
)  # theirs (D, H, h), ours (H, h, D)
MASK = Layout(ours=VECTOR.ours, theirs=lambda x: x.reshape(1, 1, -1))
ROWS = (
    Row("embed/table", "transformer.word_embedding.weight"),
    # The first input of the query stream, w in the paper (arXiv:1906.08237, section 2.3).
    Row("query", "transformer.mask_emb", MASK),
    Row("layers/attn/q", ATTENTION + "q"),
    Row("layers/attn/k", ATTENTION + "k"),
    Row("layers/attn/v", ATTENTION + "v"),
    Row("layers/attn/o", ATTENTION + "o", OUTPUT),
    Row("layers/attn/distance", ATTENTION + "r"),
    Row("layers/attn/content_bias", ATTENTION + "r_w_bias"),
    Row("layers/attn/distance_bias", ATTENTION + "r_r_bias"),
    Row("layers/attn/type_bias", ATTENTION + "r_s_bias"),
    Row("layers/attn/types", ATTENTION + "seg_embed"),
    Row("layers/attn_norm/scale", ATTENTION + "layer_norm.weight"),
    Row("layers/attn_norm/bias", ATTENTION + "layer_norm.bias"),
    Row("layers/mlp/up/kernel", "transformer.layer.{i}.ff.layer_1.weight", linear()),
    Row("layers/mlp/up/bias", "transformer.layer.{i}.ff.layer_1.bias"),
    Row("layers/mlp/down/kernel", "transformer.layer.{i}.ff.layer_2.weight", linear()),
    Row("layers/mlp/down/bias", "transformer.layer.{i}.ff.layer_2.bias"),
    Row("layers/mlp_norm/scale", "transformer.layer.{i}.ff.layer_norm.weight"),
    Row("layers/mlp_norm/bias", "transformer.layer.{i}.ff.layer_norm.bias"),
    Row("lm/bias", "lm_loss.bias"),
)
# A tied copy of the embedding.
IGNORED = (r"lm_loss\.weight",)
COPIES = (("lm_loss.weight", "transformer.word_embedding.weight"),)


def from_hf(head: str, hf: dict) -> XLNetConfig:
    """The XLNetConfig that a config.json of transformers' XLNet classes describes.

    head: "none" for XLNetModel, "permuted_lm" for XLNetLMHeadModel. Raises ValueError for another
    form of attention.
    """
    check_fixed(hf, ff_activation="gelu", attn_type="bi", bi_data=False, clamp_len=-1, same_length=False, untie_r=True)
    check_fixed(hf, d_head=(None, hf["d_model"] // hf["n_head"]), tie_word_embeddings=True)
    return XLNetConfig(
        vocab_size=hf["vocab_size"],
        num_layers=hf["n_layer"],
        embed_dim=hf["d_model"],
        num_heads=hf["n_head"],
        mlp_dim=hf["d_inner"],
        head=head,
        norm_eps=hf["layer_norm_eps"],
        init_std=hf.get("initializer_range", 0.02),
        dropout=hf.get("dropout", 0.0),
    )


def to_hf(head: str, cfg: XLNetConfig) -> dict:
    """The config.json of the XLNet class that has this head.

    Raises ValueError if the config's head is not the head of this class.
    """
    check_head(cfg, head)
    return {
        "model_type": "xlnet",
        "vocab_size": cfg.vocab_size,
        "n_layer": cfg.num_layers,
        "d_model": cfg.embed_dim,
        "n_head": cfg.num_heads,
        "d_head": cfg.head_dim,
        "d_inner": cfg.mlp_dim,
        "layer_norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "dropout": cfg.dropout,
        "ff_activation": "gelu",
        "attn_type": "bi",
        # The key says that transformers reads each text on its own, without a memory of earlier
        # texts.
        "mem_len": None,
    }


def _family(architecture: str, head: str, rows, ignored, prefix: str, renamed=(), copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, XLNetConfig, read, write, rows, ignored, prefix, renamed, copies=copies)


XLNET = (
    _family(
        "XLNetModel", "none", without_prefix(ROWS, "transformer."), (r"lm_loss\..*",), "", ((r"^transformer\.", ""),)
    ),
    _family("XLNetLMHeadModel", "permuted_lm", ROWS, IGNORED, "transformer.", copies=COPIES),
)
