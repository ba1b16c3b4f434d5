"""ELECTRA's tensor names and config.json, with one architecture for each head."""

import dataclasses
import functools

from bigmodel_jax.models.electra import ElectraConfig
from bigmodel_jax.pretrained.bert import ENCODER as BERT_ENCODER
from bigmodel_jax.pretrained.bert import sizes_from_hf, sizes_to_hf, without_prefix
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import Row, dense, layer_norm

ENCODER = (
    *(
        dataclasses.replace(row, theirs=row.theirs.replace("bert.", "electra.", 1))
        for row in BERT_ENCODER
        # ELECTRA has no pooler. Its classifier has a dense layer of its own.
        if ".pooler." not in row.theirs
    ),
    *dense("embed_project", "electra.embeddings_project"),
)
MASKED_LM = (
    *ENCODER,
    *dense("mlm/dense", "generator_predictions.dense"),
    *layer_norm("mlm/norm", "generator_predictions.LayerNorm"),
    Row("mlm/bias", "generator_lm_head.bias"),
)
REPLACED = (
    *ENCODER,
    *dense("replaced/dense", "discriminator_predictions.dense"),
    *dense("replaced/out", "discriminator_predictions.dense_prediction"),
)
CLASSIFIER = (*ENCODER, *dense("pooler", "classifier.dense"), *dense("head", "classifier.out_proj"))
TOKENS = (*ENCODER, *dense("head", "classifier"))
ANSWERS = (*ENCODER, *dense("head", "qa_outputs"))
POSITIONS = r"(.*\.)?embeddings\.position_ids"  # a buffer of older files
IGNORED = (POSITIONS, r"generator_lm_head\.weight")
# A file may also hold the head of pretraining, which the architecture at hand does not read.
UNREAD = (POSITIONS, r"(generator|discriminator)_predictions\..*", r"generator_lm_head\.(weight|bias)")
COPIES = (("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),)
WITH_CLASSES = ("classification", "token_classification")


def from_hf(head: str, hf: dict) -> ElectraConfig:
    """The ElectraConfig that a config.json of transformers' Electra classes describes.

    head: the head of the architecture, such as "replaced_token" for ElectraForPreTraining. Raises
    ValueError for relative positions and for anything that `bert.sizes_from_hf` refuses.
    """
    check_fixed(hf, position_embedding_type="absolute")
    return ElectraConfig(
        **sizes_from_hf(hf),
        max_seq_len=hf["max_position_embeddings"],
        num_token_types=hf["type_vocab_size"],
        table_dim=hf["embedding_size"],
        head=head,
        num_classes=num_classes_from_hf(hf) if head in WITH_CLASSES else 0,
    )


def to_hf(head: str, cfg: ElectraConfig) -> dict:
    """The config.json of the Electra class that has this head.

    Raises ValueError if the config has the head of another class, or no token types.
    """
    check_head(cfg, head)
    return {
        "model_type": "electra",
        **sizes_to_hf(cfg),
        "max_position_embeddings": cfg.max_seq_len,
        "type_vocab_size": cfg.num_token_types,
        "embedding_size": cfg.table_dim,
        **(labels_to_hf(cfg.num_classes) if cfg.num_classes else {}),
    }


def _family(architecture: str, head: str, rows, ignored=UNREAD, copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, ElectraConfig, read, write, rows, ignored, prefix="electra.", copies=copies)


ELECTRA = (
    dataclasses.replace(
        _family("ElectraModel", "none", without_prefix(ENCODER, "electra.")),
        prefix="",
        renamed=((r"^electra\.", ""),),
    ),
    _family("ElectraForMaskedLM", "masked_lm", MASKED_LM, IGNORED, COPIES),
    _family("ElectraForPreTraining", "replaced_token", REPLACED),
    _family("ElectraForSequenceClassification", "classification", CLASSIFIER),
    _family("ElectraForTokenClassification", "token_classification", TOKENS),
    _family("ElectraForQuestionAnswering", "question_answering", ANSWERS),
)
