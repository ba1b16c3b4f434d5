"""Masked language modelling, with which a model can also learn to label every token."""

import dataclasses

import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.models.base import Out
from bigmodel_jax.nn.head import Form
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy, of_tokens


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel(Objective):
    """Mean cross-entropy in nats over the weighted targets (Devlin et al., arXiv:1810.04805, 3.1).

    Batch: tokens, targets (B, T) int32, weights (B, T) float32, 1 where a token was chosen for
    masking (see data.masking), and the model's other inputs. The targets may also be classes of
    tokens.
    """

    reads = ("targets", "weights")
    texts = 1
    predicts = "classes"
    metrics = (held_out_loss("nats per token", headline=True), Metric("accuracy", "Accuracy", "more", "{:.2%}"))

    logits: Form = "auto"  # "whole" logits in memory, or "blocks" of the vocabulary; auto: blocks if large

    def score(self, out, batch, *, params, train) -> Loss:
        logits = out.value["logits"] if isinstance(out.value, dict) else out.value
        mean, sums = masked_tokens(out, logits, batch, train, self.logits)
        return Loss(mean, sums, out.updates)


@dataclasses.dataclass(frozen=True)
class BertPretraining(MaskedLanguageModel):
    """BERT's pretraining loss: masked tokens plus next-sentence prediction (arXiv:1810.04805, A.2).

    Batch: as for `MaskedLanguageModel`, and next_sentence (B,) int32, 0 where the second sentence
    follows the first (see data.sentence_pairs). The model needs head "pretraining". With
    microbatches, the weight of each one's next-sentence loss is its number of masked tokens.
    """

    reads = (*MaskedLanguageModel.reads, "next_sentence")
    metrics = (
        *MaskedLanguageModel.metrics,
        Metric("next_sentence_loss", "Next sentence, loss", "less", "{:.3f}", "nats per example"),
        Metric("next_sentence_accuracy", "Next sentence, accuracy", "more", "{:.2%}"),
    )

    def score(self, out, batch, *, params, train) -> Loss:
        if not isinstance(out.value, dict) or "next_sentence" not in out.value:
            raise ValueError("objective: BertPretraining needs model.head = 'pretraining'")
        mean, sums = masked_tokens(out, out.value["logits"], batch, train, self.logits)
        follows = next_sentence(out.value["next_sentence"], batch)
        sums["next_sentence_loss"] = rows = follows["loss"]
        # The summed loss is divided by the number of masked tokens, so the rows' mean is multiplied
        # by it.
        total = mean.total + rows.total / jnp.maximum(rows.count, 1.0) * mean.count
        if not train:
            sums["next_sentence_accuracy"] = follows["accuracy"]
        return Loss(Mean(total, mean.count), sums, out.updates)


def masked_tokens(out: Out, logits, batch, train: bool, form: Form) -> tuple[Mean, dict[str, Mean]]:
    """The mean loss over the chosen tokens, and its metrics."""
    weights = batch["weights"].astype(jnp.float32)
    nats, _, likeliest = of_tokens(out, logits, batch["targets"], form)
    mean = metrics.weighted(nats, weights)
    sums = {"loss": mean}
    if not train:
        sums["accuracy"] = metrics.weighted(likeliest == batch["targets"], weights)
    return mean, sums


def next_sentence(logits, batch) -> dict[str, Mean]:
    """Loss and accuracy of next-sentence prediction. Padding rows, without any weight, do not
    count.
    """
    labels, rows = batch["next_sentence"], (jnp.max(batch["weights"], axis=1) > 0).astype(jnp.float32)
    nats, _ = cross_entropy(logits, labels)
    return {"loss": metrics.weighted(nats, rows), "accuracy": metrics.weighted(metrics.correct(logits, labels), rows)}
