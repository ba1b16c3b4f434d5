"""ModernBERT's tensor names and config.json, with one architecture for each head."""

import dataclasses
import functools

from bigmodel_jax.models.modernbert import ModernBertConfig
from bigmodel_jax.pretrained.bert import without_prefix
from bigmodel_jax.pretrained.family import Family, check_fixed, check_head, shown
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import Row, dense, linear

LAYER = "model.layers.{i}"
ENCODER = (
    Row("embed/table", "model.embeddings.tok_embeddings.weight"),
    Row("embed_norm/scale", "model.embeddings.norm.weight"),
    # The first layer has no norm before its attention: the embeddings are normalised already.
    Row("attn_norm/scale", f"{LAYER}.attn_norm.weight", start="FIRST_NORM"),
    Row(tuple(f"layers/attn/{name}" for name in "qkv"), f"{LAYER}.attn.Wqkv.weight", linear()),
    Row("layers/attn/o", f"{LAYER}.attn.Wo.weight", linear(in_dims=2)),
    Row("layers/mlp_norm/scale", f"{LAYER}.mlp_norm.weight"),
    Row(("layers/mlp/gate", "layers/mlp/up"), f"{LAYER}.mlp.Wi.weight", linear()),
    Row("layers/mlp/down", f"{LAYER}.mlp.Wo.weight", linear()),
    Row("norm/scale", "model.final_norm.weight"),
)
TRANSFORM = (
    Row("transform/dense/kernel", "head.dense.weight", linear()),
    Row("transform/norm/scale", "head.norm.weight"),
)
MASKED_LM = (*ENCODER, *TRANSFORM, Row("logits_bias", "decoder.bias"))
CLASSIFIER = (*ENCODER, *TRANSFORM, *dense("head", "classifier"))
# A file may also hold the head of masked tokens, which the architecture at hand does not read.
LOGITS = (r"decoder\.(weight|bias)",)
UNREAD = (*LOGITS, r"head\.(dense|norm)\.weight")
COPIES = (("decoder.weight", "model.embeddings.tok_embeddings.weight"),)
WITH_CLASSES = ("classification", "token_classification")
PLAIN = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False) | {
    "decoder_bias": True,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
}
KINDS = ("full_attention", "sliding_attention")


def layer_types(num_layers: int, global_every: int) -> list[str]:
    """transformers' `layer_types`: layers 0, n, 2n, ... have full attention, others a window."""
    return [KINDS[i % global_every != 0] for i in range(num_layers)]


def global_every_from_hf(hf: dict) -> int:
    """The field `global_every`, from `layer_types` where the file has it.

    Raises ValueError unless every n-th layer, the first one included, is global.
    """
    types, depth, asked = hf.get("layer_types"), hf["num_hidden_layers"], hf["global_attn_every_n_layers"]
    # Several periods describe the layers of a shallow model. The period that the file states is
    # kept.
    if not types or types == layer_types(depth, asked):
        return asked
    every = (*types[1:], KINDS[0]).index(KINDS[0]) + 1
    if types != layer_types(depth, every):
        raise ValueError(
            f"config.json: layer_types = {shown(types)} is not supported; supported: every n-th full_attention, "
            "from the first layer on"
        )
    return every


def thetas_from_hf(hf: dict) -> dict:
    """The fields `rope_theta` and `local_rope_theta`.

    Newer files state them in `rope_parameters`, and older files in two keys of their own. Raises
    ValueError for scaled rotary positions.
    """
    rope = hf.get("rope_parameters") or {}
    check_fixed(rope, rope_type=None, type=None, rope_theta=None)  # one table per kind of layer
    check_fixed(hf, rope_scaling=(None, {}))
    found = []
    for kind, key in zip(KINDS, ("global_rope_theta", "local_rope_theta"), strict=True):
        table = rope.get(kind) or {}
        check_fixed(table, rope_type="default", type="default", partial_rotary_factor=(1.0, None))
        found.append(float(table["rope_theta"] if "rope_theta" in table else hf[key]))
    return dict(zip(("rope_theta", "local_rope_theta"), found, strict=True))


def from_hf(head: str, hf: dict) -> ModernBertConfig:
    """The ModernBertConfig that a config.json of transformers' ModernBert classes describes.

    head: the head of the architecture, such as "masked_lm" for ModernBertForMaskedLM. Raises
    ValueError for biases that the published models lack, for other activations than exact GELU, for
    untied embeddings, and for layers in another order.
    """
    # transformers reads no kind of positions here, and published files name several.
    check_fixed(hf, **PLAIN, position_embedding_type=("absolute", "sans_pos", None))
    check_fixed(hf, classifier_pooling=("cls", "mean"))
    check_fixed(hf, head_dim=(None, hf["hidden_size"] // hf["num_attention_heads"]))
    return ModernBertConfig(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_hidden_layers"],
        embed_dim=hf["hidden_size"],
        num_heads=hf["num_attention_heads"],
        mlp_dim=hf["intermediate_size"],
        max_seq_len=hf["max_position_embeddings"],
        head=head,
        num_classes=num_classes_from_hf(hf) if head in WITH_CLASSES else 0,
        pooling=hf["classifier_pooling"],
        # `local_attention` counts both sides of a token. Our window counts one side and the token.
        window=hf["local_attention"] // 2 + 1,
        global_every=global_every_from_hf(hf),
        **thetas_from_hf(hf),
        norm_eps=hf["norm_eps"],
        init_std=hf.get("initializer_range", 0.02),
    )


PAD = 50_283  # the id in the published tokenizer


def to_hf(head: str, cfg: ModernBertConfig) -> dict:
    """The config.json of the ModernBert class that has this head.

    transformers 4 and 5 both read it. Raises ValueError if the config's head is not the head of
    this class.
    """
    check_head(cfg, head)
    return {
        "model_type": "modernbert",
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.embed_dim,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_dim,
        "max_position_embeddings": cfg.max_seq_len,
        "classifier_pooling": cfg.pooling,
        # The window counts both sides. 1 stands for the token alone, and transformers refuses 0.
        "local_attention": max(2 * (cfg.window - 1), 1),
        "global_attn_every_n_layers": cfg.global_every,
        "global_rope_theta": cfg.rope_theta,
        "local_rope_theta": cfg.local_rope_theta,
        "norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        # The class zeroes this row of its table, so a smaller vocabulary may not have the default.
        "pad_token_id": PAD if cfg.vocab_size > PAD else None,
        **PLAIN,
        **(labels_to_hf(cfg.num_classes) if cfg.num_classes else {}),
    }


def _family(architecture: str, head: str, rows, ignored=LOGITS, copies=()) -> Family:
    read, write = functools.partial(from_hf, head), functools.partial(to_hf, head)
    return Family(architecture, ModernBertConfig, read, write, rows, ignored, copies=copies)


MODERNBERT = (
    dataclasses.replace(
        _family("ModernBertModel", "none", without_prefix(ENCODER, "model."), UNREAD),
        renamed=((r"^model\.", ""),),
    ),
    _family("ModernBertForMaskedLM", "masked_lm", MASKED_LM, (r"decoder\.weight",), COPIES),
    _family("ModernBertForSequenceClassification", "classification", CLASSIFIER),
    _family("ModernBertForTokenClassification", "token_classification", CLASSIFIER),
    _family("ModernBertForQuestionAnswering", "question_answering", CLASSIFIER),
)
