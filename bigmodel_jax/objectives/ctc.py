"""Connectionist temporal classification (CTC): learns a sequence of labels without their times.

Source: Graves et al. 2006, doi 10.1145/1143844.1143891.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigmodel_jax.core.metrics import Mean, Metric, Rows
from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.metrics import texts
from bigmodel_jax.objectives import ctc_paths
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss

# Labels become arbitrary characters, so that text metrics can compare them; only the space
# separates words.
FIRST_CHARACTER = 0xE000  # the start of Unicode's private use area


@dataclasses.dataclass(frozen=True)
class CTC(Objective):
    """-log of the summed probability of all alignments of a row's labels, in nats per label.

    The model returns {"logits" (B, T, V), "num_frames" (B,)}. Batch: labels (B, U) int32,
    num_labels (B,) int32, weights (B,) float32, and the model's inputs. A row without labels is
    silence. Its loss is that of T blanks. The data source must ensure that each row has enough
    frames for its labels.
    """

    reads = ("labels", "num_labels", "weights")
    endings = ("speech",)
    metrics = (
        Metric("wer", "Word error rate", "less", "{:.2%}", "greedy decoding", headline=True, label="words"),
        Metric("cer", "Character error rate", "less", "{:.2%}", "greedy decoding", beside="wer", label="characters"),
        held_out_loss("nats per label"),
    )

    blank: CountOrZero = 0
    "the class number that means no label"
    space: CountOrZero = 1
    "the label that separates words"

    def validate(self, config: Any) -> None:
        vocab = getattr(config.model, "vocab_size", None)
        for name in ("blank", "space"):
            value = getattr(self, name)
            if vocab is not None and value >= vocab:
                raise ValueError(f"objective.{name} = {value}; it must be below model.vocab_size = {vocab}")
            theirs = getattr(config.data, name, value)
            if theirs != value:
                raise ValueError(f"objective.{name} = {value}, but the data's is {theirs}; it must be {theirs}")
        if self.blank == self.space:
            raise ValueError(f"objective.blank = objective.space = {self.blank}; they must differ")
        for name in ("wer", "cer"):
            texts.check_package("objective CTC", *texts.TEXT_METRICS[name].package)

    def score(self, out, batch, *, params, train) -> Loss:
        logits, num_frames = out.value["logits"].astype(jnp.float32), out.value["num_frames"]
        labels, num_labels, weights = batch["labels"], batch["num_labels"], batch["weights"].astype(jnp.float32)
        nats = loss(logits, num_frames, labels, num_labels, self.blank)
        # The count is the number of labels, so the mean over a batch is per label.
        mean = Mean(jnp.sum(nats * weights), jnp.sum(num_labels * weights))
        if train:
            return Loss(mean, {"loss": mean}, out.updates)
        heard = ctc_paths.greedy(logits, num_frames, self.blank)
        said = jnp.where(jnp.arange(labels.shape[1]) < num_labels[:, None], labels, ctc_paths.NONE)
        return Loss(mean, {"loss": mean, "heard": Rows(heard, weights), "said": Rows(said, weights)}, out.updates)

    def summarize(self, metrics_: dict[str, Any]):
        """Error rates over rows with a transcript. Labels heard in silent rows count as
        insertions.
        """
        kept = np.asarray(metrics_["heard"].weights) > 0
        heard, said = (np.asarray(metrics_[name].values)[kept] for name in ("heard", "said"))
        written, right = ([self.written(row) for row in rows] for rows in (heard, said))
        return rates(written, right) | {"loss": float(metrics_["loss"].compute())}

    def written(self, labels: np.ndarray) -> str:
        """Labels as a text: one character per label, with spaces between words."""
        return "".join(" " if n == self.space else chr(FIRST_CHARACTER + int(n)) for n in labels if n >= 0)


def rates(heard: list[str], said: list[str]) -> dict[str, float]:
    """Word and character error rate of all texts together.

    Words and characters that the model hears in a silent row count as errors.
    """
    spoken = [(h, s) for h, s in zip(heard, said, strict=True) if s.strip()]
    silent = [h for h, s in zip(heard, said, strict=True) if not s.strip()]
    found = {}
    for name, count in (("wer", lambda text: len(text.split())), ("cer", len)):
        total = sum(count(s) for _, s in spoken)
        rate = 0.0
        if spoken:
            rate = texts.TEXT_METRICS[name]([h for h, _ in spoken], [[s] for _, s in spoken])[name]
        found[name] = rate + sum(map(count, silent)) / max(total, 1)
    return found


def loss(logits_BTV, num_frames_B, labels_BU, num_labels_B, blank: int) -> jax.Array:
    """(B,) CTC loss in nats, computed by Optax.

    Matrix products use full precision, because a TPU's default would round log-probabilities to
    bfloat16.
    """
    # Optax takes paddings: 1.0 for frames and labels that do not count.
    behind = jnp.arange(logits_BTV.shape[1]) >= num_frames_B[:, None]
    unused = jnp.arange(labels_BU.shape[1]) >= num_labels_B[:, None]
    with jax.default_matmul_precision("highest"):
        return optax.ctc_loss(
            logits_BTV, behind.astype(jnp.float32), labels_BU, unused.astype(jnp.float32), blank_id=blank
        )
