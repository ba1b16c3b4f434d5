"""`OptimConfig`: how a run's parameters are moved. Open: a subclass in a config file is used and saved."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from bigmodel_jax.core import params, ranges
from bigmodel_jax.core.ranges import CountOrZero, NonNegative, ProperShare, Share, ShareBelowOne
from bigmodel_jax.optim import groups, names, schedules
from bigmodel_jax.optim.groups import Group
from bigmodel_jax.optim.optimizer import (
    Optimizer,
    clipped,
    counted,
    is_schedule_free,
    num_updates,
    plateau_scale,
    schedule_free_average,
    with_plain_keys,
)
from bigmodel_jax.optim.pruning import PruneConfig, pruned, with_zeros
from bigmodel_jax.optim.schedules import PlateauConfig
from bigmodel_jax.optim.widths import of_spec


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """learning rate: linear warm-up, then `schedule` down to `final_lr_ratio` of the peak at the last step.

    Weight decay is decoupled (Loshchilov & Hutter, arXiv:1711.05101) and applies where a `Param` says so: matrices.
    A subclass may bring an update rule (`transformation`), a schedule (`schedule_fn`), or all of it (`make`).
    """

    name: names.Name = "adamw"
    lr: NonNegative = 3e-4
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.1
    l1: NonNegative = 0.0  # times the sum of |w|, added to the loss of the weights that decay
    l2: NonNegative = (
        0.0  # times half the sum of w^2, added likewise: goes through the moments, as `weight_decay` does not
    )
    warmup_steps: CountOrZero = 0
    warmup_share: ShareBelowOne = 0.0  # the warm-up as a share of the steps, in the place of warmup_steps
    schedule: schedules.Schedule = "cosine"
    final_lr_ratio: Share = 0.1
    decay_share: ProperShare = 0.1  # the share of the steps over which "wsd" goes down
    drops: tuple[tuple[ProperShare, NonNegative], ...] = ((0.5, 0.1), (0.75, 0.1))
    'what "piecewise" does: (share of the steps, factor on the rate from there on)'
    plateau: PlateauConfig = PlateauConfig()
    clip: NonNegative = 1.0  # largest global gradient norm; 0 = no clipping
    ema_decay: ShareBelowOne = 0.0  # moving average of the parameters, used for evaluation; 0 = none
    prune: PruneConfig = PruneConfig()  # weights that are zero, and stay so
    groups: tuple[Group, ...] = ()  # what differs for some parameters; the first pattern that matches a path counts

    def validate(self, total_steps: int) -> None:
        ranges.check(self, "optim.")
        schedules.check(self, total_steps)
        if self.prune.sparsity and self.prune.end <= self.prune.begin:
            raise ValueError(
                f"optim.prune.end = {self.prune.end}; it must be above optim.prune.begin = {self.prune.begin}"
            )

    def schedule_fn(self, total_steps: int) -> optax.Schedule:
        """update -> learning rate."""
        return schedules.make_schedule(self, total_steps)

    def transformation(self, rate: optax.Schedule, spec: params.Tree) -> optax.GradientTransformation:
        """The update rule for the parameters of `spec`, at the rate `rate`; clipping and groups come around it."""
        return names.transformation(self, rate, spec)

    def freeze(self, spec: params.Tree) -> params.Tree:
        """`spec` with what `groups` freezes as constants; ValueError, one line, for a pattern that matches nothing."""
        return groups.freeze(self.groups, spec) if self.groups else spec

    def check_widths(self, spec: params.Tree) -> None:
        """ValueError where parameters have widths of μP and an optimizer that it has no rule for."""
        groups.owned(self, spec)

    def make(self, spec: params.Tree, total_steps: int) -> Optimizer:
        """The optimizer of the trained parameters of `spec`: rule, schedule, clipping, average and groups."""
        whole = self.freeze(spec)
        spec = params.of_kind(whole, whole, "trained")
        if self.groups or any(width != params.Width() for width in of_spec(spec).values()):
            tx = groups.combine(self, whole, total_steps)
        else:
            tx = groups.Owned(groups.REST, self, None).make(spec, total_steps)
        tx = with_plain_keys(counted(tx, spec), spec)
        average = with_zeros(self._average(is_schedule_free(tx, spec)), self.prune, spec)
        tx = pruned(tx, self.prune, spec, total_steps)
        if self.schedule == "plateau":
            p = self.plateau
            plateau = optax.contrib.reduce_on_plateau(
                p.factor,
                p.patience,
                p.rtol,
                cooldown=p.cooldown,
                accumulation_size=p.window,
                min_scale=self.final_lr_ratio,
            )
            tx = optax.chain(tx, plateau)
        return Optimizer(clipped(tx, self.clip), self._rates(total_steps), average)

    def _rates(self, total_steps: int):
        schedule = {"learning_rate": self.schedule_fn(total_steps)} | {
            name: self.groups[n].config(self).schedule_fn(total_steps)
            for n, name in groups.rate_names(self.groups).items()
        }

        def rates(before, after) -> dict[str, jax.Array]:
            # The rule's own count, which a skipped step does not raise; a plateau's factor counts from the step that
            # finds it.
            count, scale = num_updates(before), plateau_scale(after)
            return {name: jnp.asarray(at(count) * scale, jnp.float32) for name, at in schedule.items()}

        return rates

    def _average(self, schedule_free: bool):
        if not schedule_free:
            decay = self.ema_decay
            return (lambda _, new, before: optax.incremental_update(new, before, 1.0 - decay)) if decay else None
        for name, value in (
            ("ema_decay", self.ema_decay),
            ("groups", self.groups),
            ("prune.keep", self.prune.keep),
            ("prune.sparsity", self.prune.sparsity),
        ):
            if value:
                raise ValueError(
                    f"optim.{name} = {value!r} with a schedule-free optimizer, which keeps its own average"
                )
        return schedule_free_average
