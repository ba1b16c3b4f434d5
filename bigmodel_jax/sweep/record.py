"""Write a sweep's record, sweep.json, and a terminal line for each trial.

The page is drawn from sweep.json, without Optuna.
"""

import json
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bigmodel_jax.core import files
from bigmodel_jax.report.sweep import RECORD
from bigmodel_jax.sweep import space as spaces
from bigmodel_jax.sweep import study as studies
from bigmodel_jax.sweep.definition import Sweep
from bigmodel_jax.sweep.trial import SECONDS

REASON = "reason"  # the study's attribute that holds why a trial failed


def write_record(sweep: Sweep, study: optuna.Study) -> None:
    """Write sweep.json, from which the page is drawn without Optuna."""
    trials = study.get_trials(deepcopy=False)
    content = {
        "name": sweep.run_dir.name,
        "metric": sweep.search.metric,
        "better": "less" if sweep.search.direction == "minimize" else "more",
        "sampler": sweep.search.sampler,
        "pruner": sweep.search.pruner,
        "seed": sweep.search.seed,
        "wanted": sweep.trials,
        "space": {
            name: {"text": spaces.text(d), "log": getattr(d, "log", False), "kind": type(d).__name__.lower()}
            | {"ends": list(d.labels if isinstance(d, spaces.Choice) else d.ends)}
            for name, d in sweep.space.items()
        },
        "importance": studies.importance(study),
        "trials": [_record(t) for t in trials if t.state is not TrialState.WAITING],
    }
    files.replace(sweep.run_dir / RECORD, json.dumps(content, indent=1) + "\n")


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "values": trial.params,
        "value": trial.value if trial.state is TrialState.COMPLETE else None,
        "reason": trial.user_attrs.get(REASON, ""),
        "seconds": trial.user_attrs.get(SECONDS),
        "reports": [[step, value] for step, value in sorted(trial.intermediate_values.items())],
    }


def line(sweep: Sweep, trial: FrozenTrial) -> str:
    """The terminal's line on a trial that has ended."""
    ended = {TrialState.COMPLETE: f"{sweep.search.metric} {trial.value:.5g}" if trial.value is not None else ""}
    at = max(trial.intermediate_values, default=0)
    ended |= {TrialState.PRUNED: f"pruned at step {at:,}", TrialState.FAIL: f"failed: {trial.user_attrs.get(REASON)}"}
    values = "  ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in trial.params.items())
    return f"trial {trial.number}  {ended[trial.state]}  ({values})  {trial.user_attrs.get(SECONDS, 0):.1f} s"
