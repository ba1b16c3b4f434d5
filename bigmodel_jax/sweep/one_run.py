"""Train one run of a sweep. Its result is a number, or the reason why there is none."""

import math
import os
import traceback
from pathlib import Path

from bigmodel_jax.config import Config
from bigmodel_jax.core import interrupts
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.report.writers import read_metrics
from bigmodel_jax.training import run
from bigmodel_jax.training.diverged import Diverged
from bigmodel_jax.training.early_stopping import Judge
from bigmodel_jax.training.shared_programs import OwnPrograms

# Errors that end one run but not the sweep: a diverged loss, no memory, fields that do not fit
# together. JAX raises RuntimeErrors. A full disk raises OSError, which ends the sweep.
FAILURES = (Diverged, ValueError, ArithmeticError, MemoryError, RuntimeError)


def trained(
    config: Config,
    folder: Path,
    metric: str,
    programs: OwnPrograms,
    *,
    judge: Judge | None = None,
    source: Path | None = None,
) -> tuple[float | None, str]:
    """Train an ordinary run in `folder`, or continue it.

    Returns (the metric of its last evaluation, ""), or (None, the reason in one line).
    """
    quiet = Stages(make_console(quiet=True))
    try:
        run.train(config, folder, quiet, source=source, programs=programs, judge=judge, page=False)
        value = _last(folder, metric)
    except FAILURES as error:
        interrupts.obey()  # some libraries turn a signal into an error of their own
        if os.environ.get("BIGMODEL_TRACEBACK"):
            traceback.print_exc()
        return None, " ".join(str(error).split())[:500] or type(error).__name__
    # A sampler that learns from results cannot use NaN or infinity.
    return (value, "") if math.isfinite(value) else (None, f"{metric} is {value} at the end")


def _last(folder: Path, metric: str) -> float:
    values = [record[metric] for record in read_metrics(folder) if metric in record]
    return float(values[-1]) if values and isinstance(values[-1], int | float) else math.nan
