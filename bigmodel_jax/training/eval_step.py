"""The compiled evaluation step: the objective's metrics, and additional metrics, of one batch."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.metrics import further
from bigmodel_jax.metrics import groups as groups_of_rows
from bigmodel_jax.models import Model
from bigmodel_jax.training.state import computed


def make_eval_step(
    config: Config, mesh: Mesh, model: Model | None = None
) -> Callable[[params.Tree, dict], dict[str, Mean]]:
    """Compiles (merged parameters, batch) -> summed metrics.

    `model` is the model of the parameters where it differs from the config's.
    """
    model, objective = model or config.make_model(), config.objective

    def sums(weights, batch):
        if not (config.eval.metrics or config.data.group_by):
            return objective.loss(model, weights, batch, rng=None, train=False).metrics
        # Further metrics and groups read the model's output, which `loss` does not return.
        batch, _ = objective.inputs(batch, None)
        out = model.apply(weights, batch, rng=None, train=False)
        found = objective.score(out, batch, params=weights, train=False).metrics
        return found | further.sums(config.eval.metrics, out, batch) | of_groups(out, batch)

    def of_groups(out, batch):
        return groups_of_rows.rows(objective.of_rows(out, batch), batch["group"]) if config.data.group_by else {}

    def step(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            weights = computed(config, model.spec, weights)
            return sums(weights, batch)

    return jax.jit(step, out_shardings=sharding.replicated(mesh))
