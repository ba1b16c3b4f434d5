"""A multi-layer perceptron classifier: the smallest model, and the pattern for a new one."""

import dataclasses
import functools
import itertools
import math

import jax

from bigmodel_jax.core import initial
from bigmodel_jax.core.initial import Initial
from bigmodel_jax.core.params import Tree, normal
from bigmodel_jax.core.ranges import Count, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.dropout import dropout
from bigmodel_jax.nn.linear import linear, linear_spec


@dataclasses.dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """A classifier of fully connected layers over one flattened example."""

    image_shape: tuple[Count, ...] = (28, 28, 1)  # shape of one example, which is flattened; features work too
    num_classes: Count = 10  # number of classes
    hidden_dims: tuple[Count, ...] = (256, 256)  # widths of the hidden layers
    dropout: ShareBelowOne = 0.0  # dropout rate after each hidden layer, in training
    activation: Activation = "relu"  # activation of the hidden layers
    init: Initial = "default"  # kernels' distribution; default: He's normal before an activation, LeCun's for the head
    init_std: NonNegative = 0.02  # standard deviation of "normal", "truncated_normal" and "uniform"

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "MLPConfig":
        return cls(image_shape=(8, 8, 1), hidden_dims=(16, 16))


def spec(cfg: MLPConfig) -> Tree:
    """hidden0, hidden1, ... and head, each with kernel (n_in, n_out) and bias (n_out,)."""
    dims = (math.prod(cfg.image_shape), *cfg.hidden_dims)
    tree = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(dims)):
        # He et al., arXiv:1502.01852: ReLU halves the variance. Layers are sharded by column and by
        # row in turn, so that a pair needs one collective.
        axes = ("mlp", "embed") if i % 2 else ("embed", "mlp")
        tree[f"hidden{i}"] = linear_spec(n_in, n_out, axes=axes, init=normal((2 / n_in) ** 0.5), bias=True)
    last = "embed" if len(dims) % 2 else "mlp"
    tree |= {"head": linear_spec(dims[-1], cfg.num_classes, axes=(last, None), bias=True)}
    return initial.weights(tree, cfg.init, cfg.init_std)


def apply(cfg: MLPConfig, p: Tree, batch: dict, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, num_classes) of batch["image"] (B, *image_shape)."""
    x = batch["image"].reshape(batch["image"].shape[0], -1).astype(p["head"]["kernel"].dtype)
    for i in range(len(cfg.hidden_dims)):
        x = constrain(ACTIVATIONS[cfg.activation](linear(p[f"hidden{i}"], x)), "batch", "embed" if i % 2 else "mlp")
        if train and cfg.dropout:
            x = dropout(cfg.dropout, x, jax.random.fold_in(rng, i))
    return Out(linear(p["head"], x))
