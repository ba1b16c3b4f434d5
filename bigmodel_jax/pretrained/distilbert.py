"""DistilBERT's tensor names and config.json, with one architecture for each head."""

import dataclasses
import functools

from bigmodel_jax.models.distilbert import DistilBertConfig
from bigmodel_jax.pretrained.bert import without_prefix
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import VECTOR, Row, linear

LAYER = "distilbert.transformer.layer.{i}"
ENCODER = (
    Row("embed/table", "distilbert.embeddings.word_embeddings.weight"),
    Row("positions/table", "distilbert.embeddings.position_embeddings.weight"),
    Row("embed_norm/scale", "distilbert.embeddings.LayerNorm.weight"),
    Row("embed_norm/bias", "distilbert.embeddings.LayerNorm.bias"),
    Row("layers/attn/q", f"{LAYER}.attention.q_lin.weight", linear()),
    Row("layers/attn/k", f"{LAYER}.attention.k_lin.weight", linear()),
    Row("layers/attn/v", f"{LAYER}.attention.v_lin.weight", linear()),
    Row("layers/attn/o", f"{LAYER}.attention.out_lin.weight", linear(in_dims=2)),
    Row("layers/attn/q_bias", f"{LAYER}.attention.q_lin.bias", VECTOR),
    Row("layers/attn/k_bias", f"{LAYER}.attention.k_lin.bias", VECTOR),
    Row("layers/attn/v_bias", f"{LAYER}.attention.v_lin.bias", VECTOR),
    Row("layers/attn/o_bias", f"{LAYER}.attention.out_lin.bias"),
    Row("layers/attn_norm/scale", f"{LAYER}.sa_layer_norm.weight"),
    Row("layers/attn_norm/bias", f"{LAYER}.sa_layer_norm.bias"),
    Row("layers/mlp/up/kernel", f"{LAYER}.ffn.lin1.weight", linear()),
    Row("layers/mlp/up/bias", f"{LAYER}.ffn.lin1.bias"),
    Row("layers/mlp/down/kernel", f"{LAYER}.ffn.lin2.weight", linear()),
    Row("layers/mlp/down/bias", f"{LAYER}.ffn.lin2.bias"),
    Row("layers/mlp_norm/scale", f"{LAYER}.output_layer_norm.weight"),
    Row("layers/mlp_norm/bias", f"{LAYER}.output_layer_norm.bias"),
)
MASKED_LM = (
    *ENCODER,
    Row("mlm/dense/kernel", "vocab_transform.weight", linear()),
    Row("mlm/dense/bias", "vocab_transform.bias"),
    Row("mlm/norm/scale", "vocab_layer_norm.weight"),
    Row("mlm/norm/bias", "vocab_layer_norm.bias"),
    Row("mlm/bias", "vocab_projector.bias"),
)
TOKENS = (*ENCODER, Row("head/kernel", "classifier.weight", linear()), Row("head/bias", "classifier.bias"))
CLASSIFIER = (
    *TOKENS,
    Row("pooler/kernel", "pre_classifier.weight", linear()),
    Row("pooler/bias", "pre_classifier.bias"),
)
ANSWERS = (*ENCODER, Row("head/kernel", "qa_outputs.weight", linear()), Row("head/bias", "qa_outputs.bias"))
POSITIONS = r"(.*\.)?embeddings\.position_ids"  # a buffer of older files
IGNORED = (POSITIONS, r"vocab_projector\.weight")
UNREAD = (POSITIONS, r"vocab_(transform|layer_norm|projector)\.(weight|bias)")  # the masked-LM head
COPIES = (("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),)
NORM_EPS = 1e-12  # the epsilon of every norm; config.json has no key for it
SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layers",
    "embed_dim": "dim",
    "num_heads": "n_heads",
    "mlp_dim": "hidden_dim",
    "max_seq_len": "max_position_embeddings",
    "dropout": "dropout",
}


def from_hf(head: str, hf: dict) -> DistilBertConfig:
    """The DistilBertConfig that a config.json of transformers' DistilBert classes describes.

    head: the head of the architecture, such as "masked_lm" for DistilBertForMaskedLM. Raises
    ValueError for another activation or untied embeddings.
    """
    check_fixed(hf, activation="gelu", tie_word_embeddings=True, tie_weights_=(True, None))
    return DistilBertConfig(
        **{ours: hf[theirs] for ours, theirs in SIZES.items()},
        norm_eps=NORM_EPS,
        init_std=hf.get("initializer_range", 0.02),
        head=head,
        num_classes=num_classes_from_hf(hf) if head in ("classification", "token_classification") else 0,
    )


def to_hf(head: str, cfg: DistilBertConfig) -> dict:
    """The config.json of the DistilBert class that has this head.

    Raises ValueError if the config has the head of another class, token types, or another epsilon.
    """
    check_head(cfg, head)
    if cfg.num_token_types or cfg.norm_eps != NORM_EPS:
        raise ValueError(
            f"model: a distilbert has num_token_types = 0 and norm_eps = {NORM_EPS}; "
            f"this one has {cfg.num_token_types} and {cfg.norm_eps}"
        )
    return {
        "model_type": "distilbert",
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        "initializer_range": cfg.init_std,
        "activation": "gelu",
        "attention_dropout": 0.0,
        **(labels_to_hf(cfg.num_classes) if cfg.num_classes else {}),
    }


def _family(architecture: str, head: str, rows, ignored=UNREAD, copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, DistilBertConfig, read, write, rows, ignored, prefix="distilbert.", copies=copies)


DISTILBERT = (
    dataclasses.replace(
        _family("DistilBertModel", "none", without_prefix(ENCODER, "distilbert.")),
        prefix="",
        renamed=((r"^distilbert\.", ""),),
    ),
    _family("DistilBertForMaskedLM", "masked_lm", MASKED_LM, IGNORED, COPIES),
    _family("DistilBertForSequenceClassification", "classification", CLASSIFIER),
    _family("DistilBertForTokenClassification", "token_classification", TOKENS),
    _family("DistilBertForQuestionAnswering", "question_answering", ANSWERS),
)
