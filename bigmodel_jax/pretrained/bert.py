"""BERT's tensor names and config.json, with one architecture for each head."""

import dataclasses
import functools

from bigmodel_jax.models.bert import BertConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import VECTOR, Row, linear

LAYERS = (
    Row("layers/attn/q", "bert.encoder.layer.{i}.attention.self.query.weight", linear()),
    Row("layers/attn/k", "bert.encoder.layer.{i}.attention.self.key.weight", linear()),
    Row("layers/attn/v", "bert.encoder.layer.{i}.attention.self.value.weight", linear()),
    Row("layers/attn/o", "bert.encoder.layer.{i}.attention.output.dense.weight", linear(in_dims=2)),
    Row("layers/attn/q_bias", "bert.encoder.layer.{i}.attention.self.query.bias", VECTOR),
    Row("layers/attn/k_bias", "bert.encoder.layer.{i}.attention.self.key.bias", VECTOR),
    Row("layers/attn/v_bias", "bert.encoder.layer.{i}.attention.self.value.bias", VECTOR),
    Row("layers/attn/o_bias", "bert.encoder.layer.{i}.attention.output.dense.bias"),
    Row("layers/attn_norm/scale", "bert.encoder.layer.{i}.attention.output.LayerNorm.weight"),
    Row("layers/attn_norm/bias", "bert.encoder.layer.{i}.attention.output.LayerNorm.bias"),
    Row("layers/mlp/up/kernel", "bert.encoder.layer.{i}.intermediate.dense.weight", linear()),
    Row("layers/mlp/up/bias", "bert.encoder.layer.{i}.intermediate.dense.bias"),
    Row("layers/mlp/down/kernel", "bert.encoder.layer.{i}.output.dense.weight", linear()),
    Row("layers/mlp/down/bias", "bert.encoder.layer.{i}.output.dense.bias"),
    Row("layers/mlp_norm/scale", "bert.encoder.layer.{i}.output.LayerNorm.weight"),
    Row("layers/mlp_norm/bias", "bert.encoder.layer.{i}.output.LayerNorm.bias"),
)
ENCODER = (
    Row("embed/table", "bert.embeddings.word_embeddings.weight"),
    Row("positions/table", "bert.embeddings.position_embeddings.weight"),
    Row("token_types/table", "bert.embeddings.token_type_embeddings.weight"),
    Row("embed_norm/scale", "bert.embeddings.LayerNorm.weight"),
    Row("embed_norm/bias", "bert.embeddings.LayerNorm.bias"),
    *LAYERS,
    Row("pooler/kernel", "bert.pooler.dense.weight", linear()),
    Row("pooler/bias", "bert.pooler.dense.bias"),
)
PRETRAINING = (
    *ENCODER,
    Row("mlm/dense/kernel", "cls.predictions.transform.dense.weight", linear()),
    Row("mlm/dense/bias", "cls.predictions.transform.dense.bias"),
    Row("mlm/norm/scale", "cls.predictions.transform.LayerNorm.weight"),
    Row("mlm/norm/bias", "cls.predictions.transform.LayerNorm.bias"),
    Row("mlm/bias", "cls.predictions.bias"),
    Row("next_sentence/kernel", "cls.seq_relationship.weight", linear()),
    Row("next_sentence/bias", "cls.seq_relationship.bias"),
)
CLASSIFIER = (*ENCODER, Row("head/kernel", "classifier.weight", linear()), Row("head/bias", "classifier.bias"))
ANSWERS = (*ENCODER, Row("head/kernel", "qa_outputs.weight", linear()), Row("head/bias", "qa_outputs.bias"))
# Buffers of older files, and tied copies of the embedding and of the head's bias.
IGNORED = (r"(.*\.)?embeddings\.position_ids", r"cls\.predictions\.decoder\.(weight|bias)")
# A file may also hold the pooler and the pretraining heads, which the architecture at hand does not
# read.
UNREAD = (*IGNORED, r"(bert\.)?pooler\.dense\.(weight|bias)", r"cls\..*")
COPIES = (
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)
# Files converted from TensorFlow call a norm's scale and bias gamma and beta.
RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def without_prefix(rows: tuple[Row, ...], prefix: str) -> tuple[Row, ...]:
    """The name-table rows without `prefix` in their names, which is how a file of the bare encoder
    names its tensors.
    """
    return tuple(dataclasses.replace(row, theirs=row.theirs.removeprefix(prefix)) for row in rows)


def sizes_from_hf(hf: dict) -> dict:
    """The config fields that all encoders like BERT share, read from a config.json.

    Raises ValueError for a decoder, for an activation other than exact GELU, and for untied
    embeddings.
    """
    check_fixed(hf, hidden_act="gelu", is_decoder=False, add_cross_attention=False, tie_word_embeddings=True)
    return {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "embed_dim": hf["hidden_size"],
        "num_heads": hf["num_attention_heads"],
        "mlp_dim": hf["intermediate_size"],
        "norm_eps": hf["layer_norm_eps"],
        "init_std": hf.get("initializer_range", 0.02),
        "dropout": hf.get("hidden_dropout_prob", 0.0),
    }


def sizes_to_hf(cfg) -> dict:
    """The config.json keys that all encoders like BERT share; the inverse of `sizes_from_hf`."""
    return {
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.embed_dim,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_dim,
        "layer_norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "hidden_act": "gelu",
        "hidden_dropout_prob": cfg.dropout,
        # Our models drop nothing inside attention.
        "attention_probs_dropout_prob": 0.0,
    }


def from_hf(head: str, hf: dict) -> BertConfig:
    """The BertConfig that a config.json of transformers' Bert classes describes.

    head: the head of the architecture, such as "masked_lm" for BertForMaskedLM. Raises ValueError
    where the file asks for relative positions or for anything that `sizes_from_hf` refuses.
    """
    check_fixed(hf, position_embedding_type="absolute")
    return BertConfig(
        **sizes_from_hf(hf),
        max_seq_len=hf["max_position_embeddings"],
        num_token_types=hf["type_vocab_size"],
        head=head,
        num_classes=num_classes_from_hf(hf) if head in ("classification", "token_classification") else 0,
    )


def to_hf(head: str, cfg: BertConfig) -> dict:
    """The config.json of the Bert class that has this head.

    Raises ValueError if the config's head is not the head of this class.
    """
    check_head(cfg, head)
    return {
        "model_type": "bert",
        **sizes_to_hf(cfg),
        "max_position_embeddings": cfg.max_seq_len,
        "type_vocab_size": cfg.num_token_types,
        **(labels_to_hf(cfg.num_classes) if cfg.num_classes else {}),
    }


def _family(architecture: str, head: str, rows, ignored, copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, BertConfig, read, write, rows, ignored, prefix="bert.", renamed=RENAMED, copies=copies)


BERT = (
    dataclasses.replace(
        _family("BertModel", "none", without_prefix(ENCODER, "bert."), UNREAD),
        prefix="",
        renamed=((r"^bert\.", ""), *RENAMED),
    ),
    _family("BertForMaskedLM", "masked_lm", PRETRAINING, UNREAD, COPIES),
    _family("BertForPreTraining", "pretraining", PRETRAINING, IGNORED, COPIES),
    _family("BertForSequenceClassification", "classification", CLASSIFIER, IGNORED),
    _family("BertForTokenClassification", "token_classification", CLASSIFIER, UNREAD),
    _family("BertForQuestionAnswering", "question_answering", ANSWERS, UNREAD),
)
