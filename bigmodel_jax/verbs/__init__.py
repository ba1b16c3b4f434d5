"""The verbs of the command line. Each file has verbs' functions and their help."""

from bigmodel_jax.verbs import (
    compressing,
    ensembling,
    explaining,
    jobs,
    planning,
    preparing,
    profiling,
    pruning,
    runs,
    scaling,
    serving,
    sweeping,
    transcribing,
    tuning,
    weights,
)

_FILES = (
    compressing,
    ensembling,
    explaining,
    jobs,
    planning,
    preparing,
    profiling,
    pruning,
    runs,
    scaling,
    serving,
    sweeping,
    transcribing,
    tuning,
    weights,
)
_ALL = {name: verb for file in _FILES for name, verb in file.VERBS.items()}
# The help lists the verbs in this order, which is roughly the order of their use.
_ORDER = (
    "plan",
    "train",
    "profile",
    "eval",
    "generate",
    "transcribe",
    "import",
    "export",
    "report",
    "explain",
    "ensemble",
    "prune",
    "quantize",
    "serve",
    "data",
    "prepare",
    "scale",
    "sweep",
    "find-rate",
    "cross-validate",
    "submit",
)
VERBS = {name: _ALL[name] for name in _ORDER}
