"""RoBERTa's tensor names and config.json: BERT's encoder with another prefix, and other heads."""

import dataclasses
import functools

from bigmodel_jax.models.roberta import RobertaConfig
from bigmodel_jax.pretrained.bert import ENCODER as BERT_ENCODER
from bigmodel_jax.pretrained.bert import sizes_from_hf, sizes_to_hf, without_prefix
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import Row, linear

POSITIONS_BEFORE = 2  # unused rows at the start of the position table (pad_token_id + 1)
ENCODER = tuple(dataclasses.replace(row, theirs=row.theirs.replace("bert.", "roberta.", 1)) for row in BERT_ENCODER)
MASKED_LM = (
    *ENCODER,
    Row("mlm/dense/kernel", "lm_head.dense.weight", linear()),
    Row("mlm/dense/bias", "lm_head.dense.bias"),
    Row("mlm/norm/scale", "lm_head.layer_norm.weight"),
    Row("mlm/norm/bias", "lm_head.layer_norm.bias"),
    Row("mlm/bias", "lm_head.bias"),
)
CLASSIFIER = (
    # RoBERTa's classifier has a dense layer of its own instead of the pooler.
    *(row for row in ENCODER if ".pooler." not in row.theirs),
    Row("pooler/kernel", "classifier.dense.weight", linear()),
    Row("pooler/bias", "classifier.dense.bias"),
    Row("head/kernel", "classifier.out_proj.weight", linear()),
    Row("head/bias", "classifier.out_proj.bias"),
)
IGNORED = (
    r"(.*\.)?embeddings\.position_ids",
    r"lm_head\.decoder\.(weight|bias)",
    r"(roberta\.)?pooler\.dense\.(weight|bias)",
)
COPIES = (
    ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("lm_head.decoder.bias", "lm_head.bias"),
)


def from_hf(head: str, hf: dict) -> RobertaConfig:
    """The RobertaConfig that a config.json of transformers' Roberta classes describes.

    head: the head of the architecture, such as "masked_lm" for RobertaForMaskedLM. Raises
    ValueError for relative positions or another id for padding.
    """
    check_fixed(hf, position_embedding_type="absolute", pad_token_id=POSITIONS_BEFORE - 1)
    return RobertaConfig(
        **sizes_from_hf(hf),
        max_seq_len=hf["max_position_embeddings"] - POSITIONS_BEFORE,
        num_token_types=hf["type_vocab_size"],
        head=head,
        num_classes=num_classes_from_hf(hf) if head == "classification" else 0,
    )


def to_hf(head: str, cfg: RobertaConfig) -> dict:
    """The config.json of the Roberta class that has this head.

    Raises ValueError if the config's head is not the head of this class.
    """
    check_head(cfg, head)
    return {
        "model_type": "roberta",
        **sizes_to_hf(cfg),
        "max_position_embeddings": cfg.max_seq_len + POSITIONS_BEFORE,
        "type_vocab_size": cfg.num_token_types,
        # RoBERTa's vocabulary begins with <s>, <pad> and </s>.
        "bos_token_id": 0,
        "pad_token_id": POSITIONS_BEFORE - 1,
        "eos_token_id": 2,
        **(labels_to_hf(cfg.num_classes) if cfg.num_classes else {}),
    }


def _family(architecture: str, head: str, rows, prefix: str = "roberta.", renamed=(), copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, RobertaConfig, read, write, rows, IGNORED, prefix, renamed, copies=copies)


ROBERTA = (
    _family("RobertaModel", "none", without_prefix(ENCODER, "roberta."), "", ((r"^roberta\.", ""),)),
    _family("RobertaForMaskedLM", "masked_lm", MASKED_LM, copies=COPIES),
    _family("RobertaForSequenceClassification", "classification", CLASSIFIER),
)
