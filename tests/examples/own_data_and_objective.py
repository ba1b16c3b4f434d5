"""Data and an objective of one's own in one file: pairs of texts, of which the first is to be
likelier than the second."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import DataConfig, Field
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import Loss, Objective
from bigmodel_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class CountingPairs(DataConfig):
    """Two sequences a row: one counts upwards, the other one downwards."""

    vocab_size: Count = 64
    seq_len: Count = 16

    def row(self):
        """What a row holds, before any is made: both texts of a pair lie in one row, and are cut
        along their tokens."""
        texts = {name: Field((2, self.seq_len), "int32", (None, "seq")) for name in ("tokens", "targets")}
        return texts | {"weights": Field(())}

    def open(self, split):
        return PairRows(self, 512 if split == "train" else 64)


@dataclasses.dataclass(frozen=True)
class PairRows:
    cfg: CountingPairs
    num: int

    def __len__(self):
        return self.num

    def batch(self, indices, noise):
        """Arrays (rows, ...) as `row` declares them."""
        steps = np.array([1, -1])[:, None] * np.arange(self.cfg.seq_len + 1)
        texts = (np.asarray(indices)[:, None, None] + steps) % self.cfg.vocab_size
        texts = texts.astype(np.int32)
        return {"tokens": texts[..., :-1], "targets": texts[..., 1:], "weights": np.ones(len(texts), np.float32)}


@dataclasses.dataclass(frozen=True)
class Preference(Objective):
    """-log sigmoid(log p(first) - log p(second)), a text's log p being the mean over its tokens."""

    reads = ("tokens", "targets", "weights")
    metrics = (
        Metric("loss", "Held-out loss", "less", "{:.3f}", headline=True),
        Metric("right", "Right", "more", "{:.1%}"),
    )

    def loss(self, model, params, batch, *, rng, train):
        tokens, targets = (batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "targets"))
        logits = model.apply(params, {"tokens": tokens}, rng=rng, train=train).value
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1).mean((1, 2)).reshape(-1, 2)
        margin = log_p[:, 0] - log_p[:, 1]
        sums = {"loss": metrics.weighted(-jax.nn.log_sigmoid(margin), batch["weights"])}
        sums["right"] = metrics.weighted(margin > 0, batch["weights"])
        return Loss(sums["loss"], sums, {})


def get_config() -> Config:
    return Config(
        model=LlamaConfig(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=4, mlp_dim=64),
        objective=Preference(),
        data=CountingPairs(),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=30, batch_size=16),
    )
