"""μP's factors on learning rate, decay and epsilon by width (arXiv:2203.03466, tables 3 and 8)."""

import dataclasses
from typing import Any

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Width

# NORMALISED rules make updates of the size of the learning rate, whatever the gradient's size.
# PROPORTIONAL rules make updates of the gradient's size times the learning rate.
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
    """The optimizer's config for parameters of this width; `cfg` itself for the base width.

    The amount that decay subtracts in a step stays the same. Raises ValueError for an optimizer
    without a known μP rule.
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
    """The width of each trained parameter, by path."""
    return {path: p.width for path, p in params.paths(spec).items() if p.trainable}
