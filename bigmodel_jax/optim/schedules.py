"""Learning-rate schedules by name, as functions of the number of updates made."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax

from bigmodel_jax.core.ranges import Count, CountOrZero, ProperShare, ShareBelowOne

Config = Any  # an OptimConfig, whose fields the functions below read


@dataclasses.dataclass(frozen=True)
class PlateauConfig:
    """When `schedule = "plateau"` multiplies the learning rate by `factor`.

    The learning rate falls when the training loss, averaged over `window` steps, has not fallen by
    the share `rtol` for `patience` windows in a row.
    """

    factor: ProperShare = 0.5  # multiplies the learning rate
    patience: Count = 10  # windows without a lower loss before a reduction
    window: Count = 100  # steps over which the loss is averaged
    cooldown: CountOrZero = 0  # windows after a reduction that do not count
    rtol: ShareBelowOne = 1e-4  # the loss has to fall by this share to count as lower


def warmup_steps(cfg: Config, total_steps: int) -> int:
    """The warm-up's steps, from `warmup_steps` or from `warmup_share` of all steps."""
    return cfg.warmup_steps or round(cfg.warmup_share * total_steps)


def make_schedule(cfg: Config, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of updates: a linear warm-up, then the schedule
    `cfg.schedule`.
    """
    warm = warmup_steps(cfg, total_steps)
    if cfg.schedule == "one_cycle":
        return one_cycle(cfg, warm or round(0.3 * total_steps), total_steps)
    decay = SCHEDULES[cfg.schedule](cfg, warm, max(total_steps - warm, 1))
    if not warm:
        return decay
    # The rate starts at lr / warm, not at 0, so that the first step already trains.
    warmup = optax.linear_schedule(cfg.lr / warm, cfg.lr, max(warm - 1, 1))
    return optax.join_schedules([warmup, decay], [warm])


def cosine(cfg: Config, warm: int, rest: int) -> optax.Schedule:
    """Falls from the peak to `final_lr_ratio` of it along half a cosine, over `rest` updates."""
    return optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.final_lr_ratio)


def linear(cfg: Config, warm: int, rest: int) -> optax.Schedule:
    """Falls from the peak to `final_lr_ratio` of the peak along a line, over `rest` updates."""
    return optax.linear_schedule(cfg.lr, cfg.lr * cfg.final_lr_ratio, rest)


def constant(cfg: Config, warm: int, rest: int) -> optax.Schedule:
    """The peak at every update."""
    return optax.constant_schedule(cfg.lr)


def wsd(cfg: Config, warm: int, rest: int) -> optax.Schedule:
    """Warm-up, stable, decay (arXiv:2404.06395).

    The rate stays at the peak, then falls linearly over the last `decay_share` of all steps.
    """
    decay = min(max(round(cfg.decay_share * (warm + rest)), 1), rest)
    down = optax.linear_schedule(cfg.lr, cfg.lr * cfg.final_lr_ratio, decay)
    return optax.join_schedules([optax.constant_schedule(cfg.lr), down], [rest - decay])


def inverse_sqrt(cfg: Config, warm: int, rest: int) -> optax.Schedule:
    """The peak times sqrt(warm / step) (arXiv:1706.03762, section 5.3), whatever the number of
    steps.
    """
    start = max(warm, 1)
    # join_schedules also evaluates negative counts, whose results it discards.
    return lambda count: cfg.lr * jnp.sqrt(start / (start + jnp.maximum(count, 0)))


def piecewise(cfg: Config, warm: int, rest: int) -> optax.Schedule:
    """The peak times the factor of every drop whose share of the steps has passed."""
    at = {max(round(share * (warm + rest)) - warm, 0): factor for share, factor in cfg.drops}
    return optax.piecewise_constant_schedule(cfg.lr, at)


def one_cycle(cfg: Config, warm: int, total_steps: int) -> optax.Schedule:
    """One cycle (arXiv:1708.07120): from lr / 25 up to lr, then down to `final_lr_ratio` of lr."""
    up, end = min(max(warm, 1), total_steps - 1), total_steps
    return optax.piecewise_interpolate_schedule("cosine", cfg.lr / 25, {up: 25.0, end: cfg.final_lr_ratio})


# Each takes (config, warm-up steps, steps after the warm-up) and returns a schedule that counts
# from the end of the warm-up. "plateau" is constant here; optax's reduce_on_plateau scales the
# updates.
SCHEDULES: dict[str, Callable[[Config, int, int], optax.Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
    "piecewise": piecewise,
    "plateau": constant,
}
Schedule = Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt", "piecewise", "plateau", "one_cycle"]


def check(cfg: Config, total_steps: int) -> None:
    """Raises ValueError where the schedule's fields contradict each other or the number
    of steps.
    """
    if cfg.warmup_steps > total_steps:
        raise ValueError(f"optim.warmup_steps = {cfg.warmup_steps} is more than train.steps = {total_steps}")
    if cfg.warmup_steps and cfg.warmup_share:
        raise ValueError(
            f"optim.warmup_steps = {cfg.warmup_steps} and optim.warmup_share = {cfg.warmup_share}: one of them must be 0"
        )
    shares = [share for share, _ in cfg.drops]
    if cfg.schedule == "piecewise" and (not shares or sorted(set(shares)) != shares):
        raise ValueError(
            f"optim.drops = {cfg.drops!r}; it must be pairs (share of the steps, factor) whose shares rise, "
            "as in ((0.5, 0.1), (0.75, 0.1))"
        )
    if cfg.schedule == "one_cycle" and total_steps < 2:
        raise ValueError(f"optim.schedule = 'one_cycle' with train.steps = {total_steps}; it takes 2 steps or more")
