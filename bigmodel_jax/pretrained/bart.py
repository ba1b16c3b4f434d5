"""BART's tensor names and config.json (transformers' BartForConditionalGeneration and BartModel).

Facebook published bart-base and bart-large as a `BartModel`, whose tensors lack the prefix "model."
and the bias of the logits. Such a file is read as a model whose bias is zero.
"""

import dataclasses

import numpy as np

from bigmodel_jax.models.bart import BartConfig
from bigmodel_jax.pretrained.family import Family, OtherArchitecture, check_fixed
from bigmodel_jax.pretrained.marian import ACTIVATIONS, ROW_VECTOR, block, sides_from_hf, sides_to_hf
from bigmodel_jax.pretrained.names import Row, Source, Tensor, layer_norm

BIAS, TABLE = "final_logits_bias", "model.shared.weight"


def side(name: str) -> tuple[Row, ...]:
    """The name-table rows of one side: positions, the embeddings' norm, and the layers."""
    return (
        Row(f"{name}_positions", f"model.{name}.embed_positions.weight"),
        *layer_norm(f"{name}_embed_norm", f"model.{name}.layernorm_embedding"),
        *block(name),
    )


ROWS = (Row("embed/table", TABLE), *side("encoder"), *side("decoder"), Row("logits_bias", BIAS, ROW_VECTOR))
# Tied copies of the embedding, and a mark of fairseq's files.
IGNORED = (r"model\.(encoder|decoder)\.(embed_tokens\.weight|version)", r"lm_head\.weight")
COPIES = (
    ("lm_head.weight", TABLE),
    *((f"model.{name}.embed_tokens.weight", TABLE) for name in ("encoder", "decoder")),
)


def with_bias(source: Source) -> Source:
    """The tensors of a BartModel with a bias of zeros added, of shape (1, vocabulary)."""
    # Files of a bare BartModel name the table without "model.".
    table = source.get(TABLE) or source.get(TABLE.removeprefix("model."))
    if BIAS in source or table is None:
        return source
    shape = (1, table.shape[0])
    return {**source, BIAS: Tensor(shape, table.dtype, lambda: np.zeros(shape, np.float32))}


def from_hf(hf: dict) -> BartConfig:
    """The BartConfig that a config.json of transformers' BART classes describes.

    Raises ValueError where encoder and decoder differ in width or heads, for norms before the
    sublayers, for a forced first token that is not bos_token_id, and where that id is missing.
    """
    check_fixed(hf, activation_function=tuple(ACTIVATIONS))
    # Older files state keys that BART's code in transformers no longer reads.
    check_fixed(hf, normalize_before=False, normalize_embedding=True, add_final_layer_norm=False)
    check_fixed(hf, static_position_embeddings=False, add_bias_logits=False)
    forced = hf.get("forced_bos_token_id")
    # The flag is the older form of `forced_bos_token_id`.
    if hf.get("force_bos_token_to_be_generated") and forced is None:
        forced = hf["bos_token_id"]
    if forced not in (None, hf["bos_token_id"]):
        raise ValueError(
            f"config.json: forced_bos_token_id = {forced!r} is not supported; "
            f"supported: null, or the bos_token_id {hf['bos_token_id']}"
        )
    return BartConfig(
        **sides_from_hf(hf),
        max_seq_len=hf["max_position_embeddings"],
        activation=ACTIVATIONS[hf["activation_function"]],
        scale_embedding=hf["scale_embedding"],
        eos_token_id=hf["eos_token_id"],
        bos_token_id=hf["bos_token_id"],
        forced_bos=forced is not None,
    )


def to_hf(cfg: BartConfig) -> dict:
    """The config.json of transformers' BartForConditionalGeneration for this config.

    Raises ValueError without a bias on the logits, which every such model has, and for texts that
    do not begin with bos_token_id.
    """
    for name in ("logits_bias", "text_bos"):
        if not getattr(cfg, name):
            raise ValueError(f"model.{name} = False: a published BART has it; set it to True")
    return {
        "model_type": "bart",
        **sides_to_hf(cfg),
        "num_hidden_layers": cfg.num_layers,
        "max_position_embeddings": cfg.max_seq_len,
        "scale_embedding": cfg.scale_embedding,
        "dropout": cfg.dropout,
        "bos_token_id": cfg.bos_token_id,
        # Every published BART pads with token 1.
        "pad_token_id": 1,
        "forced_bos_token_id": cfg.bos_token_id if cfg.forced_bos else None,
        "forced_eos_token_id": cfg.eos_token_id,
    }


def without_logits(cfg: BartConfig) -> dict:
    """Raises OtherArchitecture: our model has the logits that a BartModel lacks."""
    raise OtherArchitecture("a BartModel has no logits; a BartForConditionalGeneration has them")


GENERATES = Family("BartForConditionalGeneration", BartConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
BART = (
    GENERATES,
    dataclasses.replace(GENERATES, architecture="BartModel", to_hf=without_logits, prefix="model.", unpack=with_bias),
)
