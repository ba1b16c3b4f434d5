"""Contrastive training of image-text pairs (CLIP and SigLIP)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric, Rows
from bigmodel_jax.nn.cross_entropy import MASKED
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy

WAYS, TOPS = ("image_to_text", "text_to_image"), (1, 5)
AMONG = "of the held-out images, among all held-out texts"


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """Compares every image of a batch with every text of the batch. The loss is in nats.

    The model returns embeddings (B, 2, E) of length 1: image first, text second. The logits are
    cosines times exp("logit_scale") plus "logit_bias", two parameters of the model.

    softmax: the mean of two cross-entropies: of the text for each image, and of the image for each
        text (CLIP, arXiv:2103.00020).
    sigmoid: classifies each of the B x B pairs as matching or not; a sum over the texts of each
        image (SigLIP, arXiv:2303.15343).

    Batch: weights (B,), 0 for padding rows, and the model's inputs. A microbatch, or a device under
    pmap, compares only its own rows. "accuracy" ranks the texts of one batch; an evaluation also
    ranks all held-out texts for each image, and all images for each text.
    """

    reads = ("weights",)
    metrics = (
        Metric("image_to_text_top1", "Text found for an image", "more", "{:.2%}", AMONG, headline=True, label="first"),
        Metric(
            "image_to_text_top5",
            "Text among the first 5",
            "more",
            "{:.2%}",
            beside="image_to_text_top1",
            label="first 5",
        ),
        Metric(
            "chance_top1", "Found by chance", form="{:.2%}", beside="image_to_text_top1", level=True, label="chance"
        ),
        Metric("text_to_image_top1", "Image found for a text", "more", "{:.2%}"),
        Metric("text_to_image_top5", "Image among the first 5", "more", "{:.2%}"),
        Metric("accuracy", "Accuracy", "more", "{:.2%}", "among the texts of a batch"),
        held_out_loss("nats per example"),
    )

    kind: Literal["softmax", "sigmoid"] = "softmax"  # the loss, as above

    def score(self, out, batch, *, params, train) -> Loss:
        weights = batch["weights"].astype(jnp.float32)
        logits = pair_logits(params, out.value)
        # Padding rows must not serve as negatives for other rows.
        masked = jnp.where(weights[None, :] > 0, logits, MASKED)
        if self.kind == "softmax":
            nats = softmax_nats(masked, jnp.where(weights[None, :] > 0, logits.T, MASKED))
        else:
            # A masked text has the sign -1 and a very low logit, so its loss is 0.
            nats = sigmoid_nats(masked)
        here = jnp.arange(len(weights))
        sums = {"loss": metrics.weighted(nats, weights)}
        sums["accuracy"] = metrics.weighted(metrics.correct(masked, here), weights)
        if not train:
            sums["embeddings"] = Rows(out.value.astype(jnp.float32), weights)
        return Loss(sums["loss"], sums, out.updates)

    def summarize(self, metrics_):
        sums = dict(metrics_)
        embeddings = sums.pop("embeddings")
        pairs = np.asarray(embeddings.values)[np.asarray(embeddings.weights) > 0]
        return super().summarize(sums) | retrieval(pairs)


BLOCK = 1024  # rows that are compared with all others at a time, which bounds the memory


def retrieval(pairs: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 retrieval rates in both directions; pairs (N, 2, E) float32."""
    image, text = pairs[:, 0], pairs[:, 1]
    found = {}
    for way, ranks in zip(WAYS, (ranks_of(image, text), ranks_of(text, image)), strict=True):
        found |= {f"{way}_top{k}": float(np.mean(ranks < k)) for k in TOPS}
    return found | {"chance_top1": 1 / len(pairs)}


def ranks_of(queries: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(N,): the number of answers nearer to query n than its own answer n. Equal answers do not
    count.
    """
    ranks = []
    for start in range(0, len(queries), BLOCK):
        cosines = queries[start : start + BLOCK] @ answers.T
        own = np.take_along_axis(cosines, start + np.arange(len(cosines))[:, None], axis=1)
        # The dot products of equal answers may differ in the last bit.
        ranks.append(np.sum(cosines > own + 1e-6, axis=1))
    return np.concatenate(ranks)


def pair_logits(params, embeddings: jax.Array) -> jax.Array:
    """Logits (B images, B texts) in float32."""
    # The logits are float32, because exp(logit_scale), up to about 100, would multiply the rounding
    # of bfloat16.
    image, text = embeddings[:, 0].astype(jnp.float32), embeddings[:, 1].astype(jnp.float32)
    logits = (image @ text.T) * jnp.exp(params["logit_scale"].astype(jnp.float32))
    return logits + params["logit_bias"].astype(jnp.float32) if "logit_bias" in params else logits


def softmax_nats(per_image: jax.Array, per_text: jax.Array) -> jax.Array:
    """(B,) loss of each pair: the mean of the cross-entropies of both directions."""
    here = jnp.arange(len(per_image))
    return (cross_entropy(per_image, here)[0] + cross_entropy(per_text, here)[0]) / 2


def sigmoid_nats(per_image: jax.Array) -> jax.Array:
    """(B,) loss of each image, summed over the texts."""
    # A label is +1 on the diagonal, where image and text match, and -1 elsewhere.
    signs = 2 * jnp.eye(len(per_image)) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * per_image), axis=1)
