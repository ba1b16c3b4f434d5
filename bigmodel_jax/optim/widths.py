"""What a parameter's width does to its rate, its decay and its epsilon (arXiv:2203.03466, tables 3 and 8)."""

import dataclasses
from typing import Any

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Width

# By the size of an update: that of the rate whatever the gradient's, or the gradient's times the rate.
NORMALISED = (
    "adamw",
    "adam",
    "adamax",
    "adamaxw",
    "nadam",
    "nadamw",
    "adabelief",
    "adan",
    "amsgrad",
    "radam",
    "yogi",
    "ademamix",
    "adopt",
    "simplified_ademamix",
    "optimistic_adam_v2",
    "rmsprop",
    "adagrad",
    "lion",
    "sign_sgd",
    "signum",
)
PROPORTIONAL = ("sgd", "noisy_sgd")


def scaled(cfg: Any, width: Width) -> Any:
    """The config of the optimizer for parameters of this width: `cfg`, where it is that of the base.

    What decay takes in a step stays. ValueError for an optimizer of which no rule is known.
    """
    if width == Width():
        return cfg
    if cfg.name in NORMALISED:
        rate = width.multiplier / width.ins
        eps = cfg.eps * width.gradient / width.multiplier
    elif cfg.name in PROPORTIONAL:
        rate, eps = width.multiplier**2 / (width.gradient * width.ins), cfg.eps
    else:
        known = ", ".join([*NORMALISED, *PROPORTIONAL])
        raise ValueError(f"optim.name = {cfg.name!r} with mup.base: no rule of μP is known for it; allowed: {known}")
    return dataclasses.replace(cfg, lr=cfg.lr * rate, weight_decay=cfg.weight_decay / rate, eps=eps)


def of_spec(spec: params.Tree) -> dict[str, Width]:
    """The width of each trained parameter by its path."""
    return {path: p.width for path, p in params.paths(spec).items() if p.trainable}
