"""One run of a sweep, and how it ended: a number, or the reason why there is none."""

import math
import os
import traceback
from pathlib import Path

from rich.console import Console

from bigmodel_jax.config import Config
from bigmodel_jax.core import interrupts
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.report.writers import read_metrics
from bigmodel_jax.training import run
from bigmodel_jax.training.diverged import Diverged
from bigmodel_jax.training.early_stopping import Judge
from bigmodel_jax.training.shared_programs import OwnPrograms

# What ends a run and not the sweep: no finite steps, no memory, a config whose parts do not fit. JAX's own errors are
# RuntimeErrors. What a full disk raises is an OSError, and ends the sweep.
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
    """(the metric of the last evaluation, ""), or (None, the reason in one line), of an ordinary run in `folder`, which
    continues where it stands."""
    quiet = Stages(Console(quiet=True))
    try:
        run.train(config, folder, quiet, source=source, programs=programs, judge=judge, page=False)
        value = _last(folder, metric)
    except FAILURES as error:
        interrupts.obey()  # a library makes an error of its own of a signal
        if os.environ.get("BIGMODEL_TRACEBACK"):
            traceback.print_exc()
        return None, " ".join(str(error).split())[:500] or type(error).__name__
    return (value, "") if math.isfinite(value) else (None, f"{metric} is {value} at the end")


def _last(folder: Path, metric: str) -> float:
    values = [record[metric] for record in read_metrics(folder) if metric in record]
    return float(values[-1]) if values and isinstance(values[-1], int | float) else math.nan
