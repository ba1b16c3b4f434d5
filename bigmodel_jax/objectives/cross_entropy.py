"""Softmax cross-entropy of logits, and of a model's output over a vocabulary."""

import jax
import jax.numpy as jnp

from bigmodel_jax.models.base import Out
from bigmodel_jax.nn import head
from bigmodel_jax.nn.cross_entropy import cross_entropy

__all__ = ["cross_entropy", "of_tokens"]


def of_tokens(
    out: Out, logits: jax.Array, targets: jax.Array, form: head.Form
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy -log p(target), log Z (both in nats) and the likeliest token, each (B, T).

    `logits` is used only for a model whose output has no `head`. Raises ValueError for form
    "blocks" with such a model.
    """
    if out.head is not None:
        return head.cross_entropy(out.head, targets, form)
    if form == "blocks":
        raise ValueError(
            "objective.logits = 'blocks': the model does not compute its logits from a table of tokens; "
            "allowed: 'auto', 'whole'"
        )
    return *cross_entropy(logits, targets), jnp.argmax(logits, axis=-1)
