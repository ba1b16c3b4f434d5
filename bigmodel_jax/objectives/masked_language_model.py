"""Predicting the tokens that were masked, each from both sides; and, in one formula with it, labelling every token."""

import dataclasses

import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.nn.head import Form
from bigmodel_jax.objectives.base import Loss, Objective
from bigmodel_jax.objectives.cross_entropy import cross_entropy, of_tokens


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel(Objective):
    """Mean cross-entropy in nats over the targets with weight, plus that of the next sentence where the batch asks it.

    Batch: tokens, targets (B, T) int32, weights (B, T) float32, 1 where a token was chosen (see data.masking), and what
    else the model reads; next_sentence (B,) int32, 0 where the second sentence follows the first. Targets may as well
    be classes of tokens. The sum of both losses is BERT's (Devlin et al., arXiv:1810.04805, section 3.1 and A.2).
    """

    logits: Form = "auto"  # in memory ("whole") or block by block of the vocabulary; auto: blocks where they are large

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        out = model.apply(params, batch, rng=rng, train=train)
        value = out.value if isinstance(out.value, dict) else {"logits": out.value}
        weights = batch["weights"].astype(jnp.float32)
        nats, _, likeliest = of_tokens(out, value["logits"], batch["targets"], self.logits)
        mean = metrics.weighted(nats, weights)
        sums, total = {"loss": mean}, mean.total
        if not train:
            sums["accuracy"] = metrics.weighted(likeliest == batch["targets"], weights)
        if "next_sentence" in batch:
            if "next_sentence" not in value:
                raise ValueError("the batch asks for next_sentence; that needs model.head = 'pretraining'")
            follows = _next_sentence(value["next_sentence"], batch["next_sentence"], weights)
            sums["next_sentence_loss"] = rows = follows["loss"]
            # Masked tokens are the unit that sums are divided by: the rows' mean counts once for each.
            total = total + rows.total / jnp.maximum(rows.count, 1.0) * mean.count
            if not train:
                sums["next_sentence_accuracy"] = follows["accuracy"]
        return Loss(Mean(total, mean.count), sums, out.updates)

    def metric_names(self):
        return ("loss", "accuracy")


def _next_sentence(logits, labels, weights) -> dict[str, Mean]:
    """Rows that fill up a batch have no weight anywhere and do not count."""
    rows = (jnp.max(weights, axis=1) > 0).astype(jnp.float32)
    nats, _ = cross_entropy(logits, labels)
    return {"loss": metrics.weighted(nats, rows), "accuracy": metrics.weighted(metrics.correct(logits, labels), rows)}
