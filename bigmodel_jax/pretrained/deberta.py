"""The tensor names and config.json of DeBERTa-v3, which transformers calls deberta-v2."""

import functools

from bigmodel_jax.models.deberta import DebertaConfig
from bigmodel_jax.pretrained.bert import COPIES as BERT_COPIES
from bigmodel_jax.pretrained.bert import PRETRAINING, sizes_from_hf, sizes_to_hf, without_prefix
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head
from bigmodel_jax.pretrained.names import Row

PROJECTIONS = {".query.": ".query_proj.", ".key.": ".key_proj.", ".value.": ".value_proj."}


def _theirs(row: Row) -> Row:
    name = row.theirs.replace("bert.", "deberta.", 1) if row.theirs.startswith("bert.") else row.theirs
    for bert, deberta in PROJECTIONS.items():
        name = name.replace(bert, deberta)
    return Row(row.ours, name, row.layout)


NOT_IN_DEBERTA = ("positions", "token_types", "pooler", "next_sentence")
ROWS = (
    *(_theirs(row) for row in PRETRAINING if row.paths[0].split("/")[0] not in NOT_IN_DEBERTA),
    Row("distances/table", "deberta.encoder.rel_embeddings.weight"),
    Row("distance_norm/scale", "deberta.encoder.LayerNorm.weight"),
    Row("distance_norm/bias", "deberta.encoder.LayerNorm.bias"),
)
IGNORED = (
    r"(.*\.)?embeddings\.position_(ids|embeddings\.weight)",
    r"cls\.predictions\.decoder\.(weight|bias)",
    r"mask_predictions\..*",  # the discriminator that v3 was pretrained with
)
COPIES = tuple((copy, name.replace("bert.", "deberta.", 1)) for copy, name in BERT_COPIES)
# Microsoft's own files name the head's tensors `lm_predictions`.
RENAMED = (
    (r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
    (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
)


def from_hf(head: str, hf: dict) -> DebertaConfig:
    """The DebertaConfig that a config.json of transformers' DebertaV2 classes describes.

    head: "none" or "masked_lm". Raises ValueError unless the attention is that of DeBERTa-v3:
    disentangled, with shared keys and both terms of relative positions.
    """
    length = hf["max_position_embeddings"]
    check_fixed(hf, relative_attention=True, position_biased_input=False, share_att_key=True, type_vocab_size=0)
    # -1 stands for max_position_embeddings.
    check_fixed(hf, norm_rel_ebd="layer_norm", max_relative_positions=(-1, length), conv_kernel_size=0)
    # Older files write one text, with "|" between the terms.
    check_fixed(hf, pos_att_type=(["p2c", "c2p"], ["c2p", "p2c"], "p2c|c2p", "c2p|p2c"))
    check_fixed(hf, attention_head_size=hf["hidden_size"] // hf["num_attention_heads"])
    check_fixed(hf, embedding_size=hf["hidden_size"])
    return DebertaConfig(**sizes_from_hf(hf), max_seq_len=length, num_buckets=hf["position_buckets"], head=head)


def to_hf(head: str, cfg: DebertaConfig) -> dict:
    """The config.json of the DebertaV2 class that has this head.

    Raises ValueError if the config's head is not the head of this class.
    """
    check_head(cfg, head)
    return {
        "model_type": "deberta-v2",
        **sizes_to_hf(cfg),
        "max_position_embeddings": cfg.max_seq_len,
        "max_relative_positions": -1,
        "position_buckets": cfg.num_buckets,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
    }


def _family(architecture: str, head: str, rows, ignored, prefix: str, renamed, copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, DebertaConfig, read, write, rows, ignored, prefix, renamed, copies=copies)


DEBERTA = (
    _family(
        "DebertaV2Model",
        "none",
        without_prefix(ROWS, "deberta."),
        (*IGNORED, r"cls\..*"),
        "",
        ((r"^deberta\.", ""), *RENAMED),
    ),
    _family("DebertaV2ForMaskedLM", "masked_lm", ROWS, IGNORED, "deberta.", RENAMED, COPIES),
)
