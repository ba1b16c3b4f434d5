"""One affine map: linear regression, or with `Classification` softmax regression."""

import dataclasses
import functools
import math

from bigmodel_jax.core import initial
from bigmodel_jax.core.initial import Initial
from bigmodel_jax.core.params import Tree, zeros
from bigmodel_jax.core.ranges import Count, NonNegative
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.nn.linear import linear, linear_spec


@dataclasses.dataclass(frozen=True)
class LinearConfig(ModelConfig):
    """One linear layer: linear regression or, with classes, softmax regression."""

    feature_shape: tuple[Count, ...] = (10,)  # shape of one example's features
    num_outputs: Count = 1  # predicted numbers, or classes
    init: Initial = "default"  # distribution of kernels; default: zeros
    init_std: NonNegative = 0.02  # standard deviation of "normal", "truncated_normal" and "uniform"

    def inputs(self):
        return {"features": self.feature_shape}

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "LinearConfig":
        return cls(feature_shape=(16,), num_outputs=2)


def spec(cfg: LinearConfig) -> Tree:
    """kernel (F, num_outputs), F = all features of an example, and bias (num_outputs,)."""
    # Both losses are convex, so the result does not depend on the initial values. With zeros, every
    # run starts at the same loss.
    num = math.prod(cfg.feature_shape)
    tree = linear_spec(num, cfg.num_outputs, axes=("embed", None), init=zeros(), bias=True)
    return initial.weights(tree, cfg.init, cfg.init_std)


def apply(cfg: LinearConfig, p: Tree, batch: dict, *, rng=None, train=False, cache=None) -> Out:
    """Predictions or logits (B, num_outputs) of batch["features"] (B, F)."""
    return Out(linear(p, batch["features"].astype(p["kernel"].dtype)))
