"""`OptimConfig`: the optimizer, its learning-rate schedule and its regularisation.

A config file may define a subclass of it. A run then uses and saves the subclass.
"""

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
    """The optimizer of a run: update rule, learning rate, decay, clipping and parameter groups.

    The learning rate warms up linearly, then follows `schedule` down to `final_lr_ratio` of the
    peak at the last step. Weight decay is decoupled (Loshchilov & Hutter, arXiv:1711.05101) and
    applies to parameters whose `Param` has decay=True, which are the matrices. A subclass may
    replace the update rule (`transformation`), the schedule (`schedule_fn`) or everything (`make`).
    """

    name: names.Name = "adamw"  # the update rule, a row of OPTIMIZERS
    lr: NonNegative = 3e-4  # the peak learning rate
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)  # decay rates of the first and second moment
    eps: NonNegative = 1e-8  # added to the denominator of an update
    weight_decay: NonNegative = 0.1  # each update subtracts rate * weight_decay * weight
    l1: NonNegative = 0.0  # factor of the sum of |w| over weights that decay, added to the loss
    l2: NonNegative = 0.0  # factor of half the sum of w^2, added to the loss; passes through the moments
    warmup_steps: CountOrZero = 0  # the learning rate rises over this many steps
    warmup_share: ShareBelowOne = 0.0  # the warm-up as a share of the steps, instead of warmup_steps
    schedule: schedules.Schedule = "cosine"  # how the learning rate goes on after the warm-up
    final_lr_ratio: Share = 0.1  # the last learning rate as a share of the peak
    decay_share: ProperShare = 0.1  # "wsd" decays the learning rate over this share of the steps, at the end
    drops: tuple[tuple[ProperShare, NonNegative], ...] = ((0.5, 0.1), (0.75, 0.1))
    'for "piecewise": pairs (share of the steps, factor on the learning rate from there on)'
    plateau: PlateauConfig = PlateauConfig()  # the "plateau" schedule: when the learning rate falls
    clip: NonNegative = 1.0  # largest global gradient norm; 0 = no clipping
    ema_decay: ShareBelowOne = 0.0  # decay of the moving average of the weights, which evaluation uses; 0 = none
    prune: PruneConfig = PruneConfig()  # weights that are zero and stay zero
    groups: tuple[Group, ...] = ()  # settings for some parameters; the first pattern that matches a path counts

    def validate(self, total_steps: int) -> None:
        """Raises ValueError for values out of range, alone or together with `total_steps`."""
        ranges.check(self, "optim.")
        schedules.check(self, total_steps)
        if self.prune.sparsity and self.prune.end <= self.prune.begin:
            raise ValueError(
                f"optim.prune.end = {self.prune.end}; it must be above optim.prune.begin = {self.prune.begin}"
            )

    def schedule_fn(self, total_steps: int) -> optax.Schedule:
        """The learning rate as a function of the number of updates made."""
        return schedules.make_schedule(self, total_steps)

    def transformation(self, rate: optax.Schedule, spec: params.Tree) -> optax.GradientTransformation:
        """The update rule for the parameters of `spec`, at the learning rate `rate`.

        `make` adds clipping and groups around it.
        """
        return names.transformation(self, rate, spec)

    def freeze(self, spec: params.Tree) -> params.Tree:
        """`spec`, with the parameters that `groups` freezes turned into constants.

        Raises a one-line ValueError for a pattern that matches nothing.
        """
        return groups.freeze(self.groups, spec) if self.groups else spec

    def check_widths(self, spec: params.Tree) -> None:
        """Raises ValueError where μP widths are set and the optimizer has no μP rule."""
        groups.owned(self, spec)

    def make(self, spec: params.Tree, total_steps: int) -> Optimizer:
        """The whole optimizer of the trained parameters of `spec`."""
        # Groups need the whole spec. The rules below see only the trained parameters.
        whole = self.freeze(spec)
        spec = params.of_kind(whole, whole, "trained")
        if self.groups or any(width != params.Width() for width in of_spec(spec).values()):
            tx = groups.combine(self, whole, total_steps)
        else:
            tx = groups.Owned(groups.REST, self, None).make(spec, total_steps)
        tx = with_plain_keys(counted(tx, spec), spec)
        average = with_zeros(self._average(is_schedule_free(tx, spec)), self.prune, spec)
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
        # Pruning is last: an update that is scaled after it makes no weight exactly zero.
        tx = pruned(tx, self.prune, spec, total_steps)
        return Optimizer(clipped(tx, self.clip), self._rates(total_steps), average)

    def _rates(self, total_steps: int):
        schedule = {"learning_rate": self.schedule_fn(total_steps)} | {
            name: self.groups[n].config(self).schedule_fn(total_steps)
            for n, name in groups.rate_names(self.groups).items()
        }

        def rates(before, after) -> dict[str, jax.Array]:
            # The optimizer's own count is used, which a skipped step does not raise. A plateau's
            # factor holds from the step that finds the plateau.
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
                    f"optim.{name} = {value!r} with a schedule-free optimizer; "
                    "leave it out, as that optimizer keeps its own average"
                )
        return schedule_free_average
