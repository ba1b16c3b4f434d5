"""From an `OptimConfig` to an optax transformation and its learning-rate schedule."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Share, ShareBelowOne


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """learning rate: linear warm-up, then `schedule` down to `final_lr_ratio` of the peak at the last step.

    Weight decay is decoupled (Loshchilov & Hutter, arXiv:1711.05101) and applies where a `Param` says so: matrices.
    """

    name: Literal["adamw", "lion", "sgd"] = "adamw"
    lr: NonNegative = 3e-4
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.1
    warmup_steps: CountOrZero = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr_ratio: Share = 0.1
    clip: NonNegative = 1.0  # largest global gradient norm; 0 = no clipping
    ema_decay: ShareBelowOne = 0.0  # moving average of the parameters, used for evaluation; 0 = none

    def validate(self, total_steps: int) -> None:
        for name in ("lr", "weight_decay", "clip", "eps", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} = {getattr(self, name)} is negative; it must be 0 or more")
        for name, value in (("ema_decay", self.ema_decay), ("betas", max(self.betas)), ("betas", min(self.betas))):
            if not 0 <= value < 1:
                raise ValueError(f"optim.{name} = {value} is outside [0, 1)")
        if self.warmup_steps > total_steps:
            raise ValueError(f"optim.warmup_steps = {self.warmup_steps} is more than train.steps = {total_steps}")


def make_schedule(cfg: OptimConfig, total_steps: int) -> optax.Schedule:
    """step -> learning rate."""
    rest = max(total_steps - cfg.warmup_steps, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.final_lr_ratio),
        "linear": optax.linear_schedule(cfg.lr, cfg.lr * cfg.final_lr_ratio, rest),
        "constant": optax.constant_schedule(cfg.lr),
    }[cfg.schedule]
    if not cfg.warmup_steps:
        return decay
    # The first step already moves: the rate starts at lr / warmup_steps, not at 0.
    warmup = optax.linear_schedule(cfg.lr / cfg.warmup_steps, cfg.lr, max(cfg.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [cfg.warmup_steps])


def make(cfg: OptimConfig, spec: params.Tree, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(transformation, schedule) for the trainable parameters of `spec`."""
    schedule = make_schedule(cfg, total_steps)
    trainable, _ = params.partition(spec, spec)
    mask = params.map_spec(lambda p: p.decay, trainable)
    b1, b2 = cfg.betas
    tx = {
        "adamw": lambda: optax.adamw(schedule, b1, b2, cfg.eps, weight_decay=cfg.weight_decay, mask=mask),
        "lion": lambda: optax.lion(schedule, b1, b2, weight_decay=cfg.weight_decay, mask=mask),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(cfg.weight_decay, mask), optax.sgd(schedule, momentum=b1 or None)
        ),
    }[cfg.name]()
    return tx, schedule


def num_updates(opt_state: Any) -> jax.Array:
    """Updates that the optimizer has made: what its schedule counts."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))
    (state,) = [x for x in leaves if isinstance(x, optax.ScaleByScheduleState)]
    return state.count


def clip(grads: Any, norm: jax.Array, limit: float) -> Any:
    """Gradients scaled so that their global norm, given as `norm`, is at most `limit`; 0 = unchanged."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)
