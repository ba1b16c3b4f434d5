"""Optimizers of optax and optax.contrib by name, each with the config fields that it takes."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import optax
from optax import contrib

from bigmodel_jax.core import params
from bigmodel_jax.optim.muon import muon

Config = Any  # an OptimConfig


@dataclasses.dataclass(frozen=True)
class Named:
    """A row of OPTIMIZERS.

    make: called with the schedule and the arguments that `takes` names.
    takes: names of arguments, separated by spaces. `arguments` has their values.
    decay: what `weight_decay` does where `takes` does not name it. "decoupled" subtracts rate *
        weight_decay * weight from each weight that decays; "none" does nothing.
    """

    make: Callable[..., optax.GradientTransformation]
    takes: str = ""
    decay: Literal["decoupled", "none"] = "decoupled"


def arguments(cfg: Config, mask: params.Tree, spec: params.Tree) -> dict[str, Any]:
    """The value of each argument that a row's `takes` may name."""
    b1, b2 = cfg.betas
    return {
        "b1": b1,
        "b2": b2,
        "betas": cfg.betas,
        "beta": b1,
        "momentum": b1 or None,
        "decay": b2,
        "rho": b2,
        "eps": cfg.eps,
        "weight_decay": cfg.weight_decay,
        "mask": mask,
        "weight_decay_mask": mask,
        "cfg": cfg,
        "spec": spec,
    }


def _sgd(rate, weight_decay, mask, momentum):
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(rate, momentum=momentum))


def _muon(rate, cfg, mask, spec):
    return muon(cfg, rate, mask, spec)


def _polyak_sgd(rate):
    return optax.polyak_sgd(max_learning_rate=1.0, scaling=rate)


def _noisy_sgd(rate):
    return optax.noisy_sgd(rate, key=0)


def _sm3(rate, b1):  # optax.sm3 accepts a number but no schedule
    return optax.chain(optax.scale_by_sm3(b1), optax.scale_by_learning_rate(rate))


def _schedule_free_adamw(rate, b1, b2, eps, weight_decay, mask):
    # b1 = 0, because the schedule-free average replaces the momentum.
    base = optax.adamw(rate, 0.0, b2, eps, weight_decay=weight_decay, mask=mask)
    return contrib.schedule_free(base, rate, b1=b1)


def _schedule_free_sgd(rate, b1, weight_decay, mask):
    base = optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(rate))
    return contrib.schedule_free(base, rate, b1=b1)


ADAM = "b1 b2 eps"
OPTIMIZERS: dict[str, Named] = {
    "adamw": Named(optax.adamw, f"{ADAM} weight_decay mask"),
    "lion": Named(optax.lion, "b1 b2 weight_decay mask"),
    "sgd": Named(_sgd, "momentum weight_decay mask"),
    "muon": Named(_muon, "cfg mask spec", decay="none"),
    # --- the Adam family
    "adam": Named(optax.adam, ADAM, decay="none"),
    "adamax": Named(optax.adamax, ADAM, decay="none"),
    "adamaxw": Named(optax.adamaxw, f"{ADAM} weight_decay mask"),
    "nadam": Named(optax.nadam, ADAM, decay="none"),
    "nadamw": Named(optax.nadamw, f"{ADAM} weight_decay mask"),
    "adabelief": Named(optax.adabelief, "b1 b2"),
    "adan": Named(optax.adan, "eps weight_decay mask"),
    "amsgrad": Named(optax.amsgrad, ADAM),
    "lamb": Named(optax.lamb, f"{ADAM} weight_decay mask"),
    "novograd": Named(optax.novograd, ADAM),
    "optimistic_adam_v2": Named(optax.optimistic_adam_v2, ADAM),
    "radam": Named(optax.radam, ADAM),
    "yogi": Named(optax.yogi, "b1 b2"),
    "acprop": Named(contrib.acprop, "b1 b2 weight_decay mask"),
    "ademamix": Named(contrib.ademamix, f"{ADAM} weight_decay mask"),
    "adopt": Named(contrib.adopt, "b1 b2"),
    "simplified_ademamix": Named(contrib.simplified_ademamix, f"{ADAM} weight_decay mask"),
    # --- second moments without first moments, or with compressed ones
    "adadelta": Named(optax.adadelta, "rho"),
    "adafactor": Named(optax.adafactor),
    "adagrad": Named(optax.adagrad),
    "rmsprop": Named(optax.rmsprop, "decay eps"),
    "sm3": Named(_sm3, "b1"),
    "madgrad": Named(contrib.madgrad, "momentum"),
    # --- rules on gradients, signs or norms
    "fromage": Named(optax.fromage),
    "lars": Named(optax.lars, "momentum weight_decay weight_decay_mask"),
    "noisy_sgd": Named(_noisy_sgd),
    "optimistic_gradient_descent": Named(optax.optimistic_gradient_descent),
    "sign_sgd": Named(optax.sign_sgd),
    "signum": Named(optax.signum, "beta"),
    # --- rules that estimate the rate; `lr` multiplies their estimate, so begin with lr = 1
    "polyak_sgd": Named(_polyak_sgd),
    "cocob": Named(contrib.cocob, "weight_decay mask"),
    "dadapt_adamw": Named(contrib.dadapt_adamw, "betas eps weight_decay"),
    "dog": Named(contrib.dog, "weight_decay mask"),
    "dowg": Named(contrib.dowg, "weight_decay mask"),
    "momo": Named(contrib.momo, "beta weight_decay"),
    "momo_adam": Named(contrib.momo_adam, f"{ADAM} weight_decay"),
    "prodigy": Named(contrib.prodigy, "betas eps weight_decay"),
    # --- schedule-free rules, meant for `schedule` "constant" with a warm-up
    "schedule_free_adamw": Named(_schedule_free_adamw, f"{ADAM} weight_decay mask"),
    "schedule_free_sgd": Named(_schedule_free_sgd, "b1 weight_decay mask"),
}
Name = Literal[tuple(OPTIMIZERS)]


def transformation(cfg: Config, rate: optax.Schedule, spec: params.Tree) -> optax.GradientTransformation:
    """The optimizer called `cfg.name`, for the parameters of `spec`, all of which are trained."""
    named, mask = OPTIMIZERS[cfg.name], decay_mask(spec)
    known = arguments(cfg, mask, spec)
    tx = named.make(rate, **{name: known[name] for name in named.takes.split()})
    if named.decay == "none" or "weight_decay" in named.takes.split() or not cfg.weight_decay:
        return tx
    return optax.chain(tx, optax.add_decayed_weights(lambda count: -cfg.weight_decay * rate(count), mask))


def decay_mask(spec: params.Tree) -> params.Tree:
    """A tree of booleans: True for the parameters that have weight decay."""
    return params.map_spec(lambda p: p.decay, spec)
