"""Encoders of transformers: tiny, random, and everything that a parity test asks of them.

"value/*" is what the model gives, "loss" the loss over it that `targets` of the same name make.
"""

import functools
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    XLNetConfig,
)

from references.weights import randomize, save_gradients, save_weights

VOCAB = 96
STEPS = 20
CLASSES = 5
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# What a head adds is small: so is the encoder under it.
SMALL = SIZES | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
# Rows 0 and 1 of RoBERTa's position table stand before the first token's.
ROBERTA = {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DEBERTA = {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "position_buckets": 6,  # 13 tokens reach the buckets of several distances
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
}
XLNET = {"vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "dropout": 0.0, "mem_len": None}
DISTIL = {
    "vocab_size": VOCAB,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
    **dict.fromkeys(("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"), 0.0),
}
SMALL_DISTIL = DISTIL | {"dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2}
ELECTRA = {"embedding_size": 24}
SMALL_ELECTRA = SMALL | {"embedding_size": 12}
MODERN = {
    "num_hidden_layers": 4,  # of both kinds, with each kind twice
    "pad_token_id": 0,
    **{f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")},
    "local_attention": 6,  # 13 tokens reach beyond it on both sides
    "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    },
}
SMALL_MODERN = {"num_hidden_layers": 2, "layer_types": MODERN["layer_types"][:2]}
BARE = {name: size for name, size in SIZES.items() if not name.endswith("dropout_prob")}
SMALL_BARE = BARE | {name: size for name, size in SMALL.items() if name in BARE} | MODERN | SMALL_MODERN
VALUES = ("last_hidden_state", "pooler_output", "logits", "prediction_logits", "seq_relationship_logits")


def draw(seed: int, *shape: int, low: int = 3, high: int = VOCAB) -> torch.Tensor:
    """Draws integers that are not the padding's."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def values(model, **inputs) -> dict[str, np.ndarray]:
    """Every output by its name in transformers."""
    result = model(**inputs)
    found = {name: getattr(result, name, None) for name in (*VALUES, "start_logits", "end_logits")}
    return {f"value/{name}": x.detach().numpy() for name, x in found.items() if x is not None}


def forward(model, types: int) -> dict[str, np.ndarray]:
    """Runs rows of an odd length with two token types and keeps every hidden state. It also runs
    padding, and documents one by one as if packed."""
    inputs = {"input_ids": draw(1, 2, 13)} | ({"token_type_ids": draw(2, 2, 13, low=0, high=types)} if types else {})
    out = {"tokens": inputs["input_ids"].numpy()}
    out |= {"token_types": inputs["token_type_ids"].numpy()} if types else {}
    with torch.no_grad():
        out |= values(model, **inputs)
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        out["hidden_states"] = np.stack([h.numpy() for h in hidden])
        mask = torch.ones(2, 11, dtype=torch.long)
        mask[1, 7:] = 0
        ids = torch.where(mask > 0, draw(3, 2, 11), model.config.pad_token_id)
        out |= {"padded/tokens": ids.numpy(), "padded/mask": mask.numpy()}
        out |= {f"padded/{k}": v for k, v in values(model, input_ids=ids, attention_mask=mask).items()}
        for n, length in enumerate((5, 8)):
            document = draw(4 + n, 1, length)
            out[f"packed/tokens_{n}"] = document.numpy()
            out |= {f"packed_{n}/{k}": v for k, v in values(model, input_ids=document).items()}
    return out


def masked_lm_loss(model, ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, **inputs) -> torch.Tensor:
    return model(input_ids=ids, labels=torch.where(weights > 0, targets, -100), **inputs).loss


def masked_batch(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens, targets, weights): a third of the places ask for another token than stands there."""
    return draw(seed, *shape), draw(seed + 1, *shape), (draw(seed + 2, *shape, low=0, high=3) == 0).long()


def permuted(model, inputs: dict, arrays: dict) -> torch.Tensor:
    """Both streams predict five of 13 tokens in an order of their own. Four of these tokens count
    in the mean loss."""
    order = torch.zeros(2, 13, dtype=torch.long)
    order[:, [1, 4, 6, 9, 12]] = torch.tensor([[3, 1, 5, 2, 4], [2, 5, 1, 4, 3]])
    places, targets = torch.tensor([[4, 9, 1, 6], [12, 1, 9, 4]]), draw(41, 2, 4)
    seen = (order[:, None, :] == 0) | (order[:, None, :] < order[:, :, None])
    mapping = torch.nn.functional.one_hot(places, 13).float()
    result = model(**inputs, perm_mask=1.0 - seen.float(), target_mapping=mapping)
    marks = {"order": order, "places": places, "targets": targets, "weights": torch.ones(2, 4)}
    arrays |= {name: x.numpy() for name, x in marks.items()}
    arrays |= {"permuted/value/logits": result.logits.detach().numpy()}
    return torch.nn.functional.cross_entropy(result.logits.reshape(-1, VOCAB), targets.reshape(-1))


def replaced(model, inputs: dict, arrays: dict, targets: torch.Tensor) -> torch.Tensor:
    """Every token is original (0) or replaced (1)."""
    arrays |= {"targets": targets.numpy(), "weights": np.ones(targets.shape, np.int64)}
    return model(**inputs, labels=targets).loss


def loss_of(model, arrays: dict) -> torch.Tensor:
    """The reference's own loss for its head; the encoder alone has none and gets one."""
    inputs = {"input_ids": torch.tensor(arrays["tokens"])}
    if "token_types" in arrays:
        inputs["token_type_ids"] = torch.tensor(arrays["token_types"])
    if type(model).__name__ == "XLNetLMHeadModel":
        return permuted(model, inputs, arrays)
    _, targets, weights = masked_batch(21, 2, 13)
    if type(model).__name__ == "ElectraForPreTraining":
        return replaced(model, inputs, arrays, targets % 2)
    classes = draw(24, 2, 13, low=0, high=CLASSES)
    marks = {
        "MaskedLM": {"targets": targets, "weights": weights},
        "PreTraining": {"targets": targets, "weights": weights, "next_sentence": torch.tensor([0, 1])},
        "SequenceClassification": {"label": classes[:, 0]},
        "TokenClassification": {"targets": classes, "weights": weights},
        "QuestionAnswering": {"start": torch.tensor([2, 7]), "end": torch.tensor([4, 12])},
    }
    head = next((name for name in marks if type(model).__name__.endswith(name)), None)
    marks = marks.get(head, {})
    arrays |= {name: x.numpy() for name, x in marks.items()}
    if head is None:
        return sum(getattr(model(**inputs), name, torch.zeros(1)).square().mean() for name in VALUES[:2])
    labels = {"labels": marks.get("label")}
    if "targets" in marks:
        labels = {"labels": torch.where(weights > 0, marks["targets"], -100)}
    if "next_sentence" in marks:
        labels["next_sentence_label"] = marks["next_sentence"]
    if "start" in marks:
        labels = {"start_positions": marks["start"], "end_positions": marks["end"]}
    return model(**inputs, **labels).loss


def train(model) -> dict[str, np.ndarray]:
    """Takes 20 AdamW steps on masked tokens, clipped. Only matrices decay."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    batches = [x.repeat(STEPS // 4, 1, 1) for x in masked_batch(31, 4, 4, 12)]  # four batches over and over
    losses = []
    for ids, targets, weights in zip(*batches, strict=True):
        optimizer.zero_grad()
        loss = masked_lm_loss(model, ids, targets, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    names = ("tokens", "targets", "weights")
    return {f"train/{n}": x.numpy() for n, x in zip(names, batches, strict=True)} | {"train/losses": np.array(losses)}


def write(architecture: str, config, folder: Path, *, training: bool = False) -> None:
    cls = getattr(transformers, architecture)
    model = cls._from_config(config, attn_implementation="eager").float().eval()
    randomize(model)
    save_weights(model, folder)
    # XLNet compares types, and two have none.
    types = 0 if config.model_type in ("distilbert", "modernbert") else getattr(config, "type_vocab_size", 2)
    arrays = forward(model, types)
    value = loss_of(model, arrays)
    value.backward()
    arrays["loss"] = value.detach().numpy()
    save_gradients(model, folder)
    if training:
        model.zero_grad()
        arrays |= train(model)
    np.savez_compressed(folder / "reference.npz", **arrays)


ENCODERS = {
    "bert": functools.partial(write, "BertForMaskedLM", BertConfig(**SIZES), training=True),
    "bert-encoder": functools.partial(write, "BertModel", BertConfig(**SMALL)),
    "bert-pretraining": functools.partial(write, "BertForPreTraining", BertConfig(**SMALL)),
    "bert-classification": functools.partial(
        write, "BertForSequenceClassification", BertConfig(**SMALL, num_labels=CLASSES)
    ),
    "bert-token-classification": functools.partial(
        write, "BertForTokenClassification", BertConfig(**SMALL, num_labels=CLASSES)
    ),
    "bert-question-answering": functools.partial(write, "BertForQuestionAnswering", BertConfig(**SMALL)),
    "roberta": functools.partial(write, "RobertaForMaskedLM", RobertaConfig(**SIZES | ROBERTA)),
    "roberta-encoder": functools.partial(write, "RobertaModel", RobertaConfig(**SMALL | ROBERTA)),
    "roberta-classification": functools.partial(
        write, "RobertaForSequenceClassification", RobertaConfig(**SMALL | ROBERTA, num_labels=CLASSES)
    ),
    "distilbert": functools.partial(write, "DistilBertForMaskedLM", DistilBertConfig(**DISTIL)),
    "distilbert-encoder": functools.partial(write, "DistilBertModel", DistilBertConfig(**SMALL_DISTIL)),
    "distilbert-classification": functools.partial(
        write, "DistilBertForSequenceClassification", DistilBertConfig(**SMALL_DISTIL, num_labels=CLASSES)
    ),
    "distilbert-token-classification": functools.partial(
        write, "DistilBertForTokenClassification", DistilBertConfig(**SMALL_DISTIL, num_labels=CLASSES)
    ),
    "distilbert-question-answering": functools.partial(
        write, "DistilBertForQuestionAnswering", DistilBertConfig(**SMALL_DISTIL)
    ),
    "electra": functools.partial(write, "ElectraForMaskedLM", ElectraConfig(**SIZES | ELECTRA), training=True),
    "electra-encoder": functools.partial(write, "ElectraModel", ElectraConfig(**SMALL_ELECTRA)),
    "electra-replaced-token": functools.partial(write, "ElectraForPreTraining", ElectraConfig(**SMALL_ELECTRA)),
    "electra-classification": functools.partial(
        write,
        "ElectraForSequenceClassification",
        ElectraConfig(**SMALL_ELECTRA | {"hidden_size": 48}, num_labels=CLASSES),
    ),
    "electra-token-classification": functools.partial(
        write, "ElectraForTokenClassification", ElectraConfig(**SMALL_ELECTRA, num_labels=CLASSES)
    ),
    "electra-question-answering": functools.partial(
        write, "ElectraForQuestionAnswering", ElectraConfig(**SMALL | {"embedding_size": 16})
    ),
    "modernbert": functools.partial(write, "ModernBertForMaskedLM", ModernBertConfig(**BARE | MODERN), training=True),
    "modernbert-encoder": functools.partial(write, "ModernBertModel", ModernBertConfig(**SMALL_BARE)),
    "modernbert-classification": functools.partial(
        write, "ModernBertForSequenceClassification", ModernBertConfig(**SMALL_BARE, num_labels=CLASSES)
    ),
    "modernbert-mean-classification": functools.partial(
        write,
        "ModernBertForSequenceClassification",
        ModernBertConfig(**SMALL_BARE, classifier_pooling="mean", num_labels=CLASSES),
    ),
    "modernbert-token-classification": functools.partial(
        write, "ModernBertForTokenClassification", ModernBertConfig(**SMALL_BARE, num_labels=CLASSES)
    ),
    "modernbert-question-answering": functools.partial(
        write, "ModernBertForQuestionAnswering", ModernBertConfig(**SMALL_BARE)
    ),
    "deberta": functools.partial(write, "DebertaV2ForMaskedLM", DebertaV2Config(**SIZES | DEBERTA)),
    "deberta-encoder": functools.partial(write, "DebertaV2Model", DebertaV2Config(**SMALL | DEBERTA)),
    "xlnet": functools.partial(write, "XLNetLMHeadModel", XLNetConfig(**XLNET)),
    "xlnet-encoder": functools.partial(
        write, "XLNetModel", XLNetConfig(**XLNET | {"d_model": 16, "n_layer": 1, "n_head": 2})
    ),
}
