"""The verbs of the command line: what each one does, and what it says of itself."""

from bigmodel_jax.verbs import jobs, planning, preparing, runs, scaling, sweeping, weights

_ALL = runs.VERBS | weights.VERBS | planning.VERBS | scaling.VERBS | sweeping.VERBS | jobs.VERBS | preparing.VERBS
# In the order of their use.
_ORDER = (
    "plan",
    "train",
    "eval",
    "generate",
    "import",
    "export",
    "report",
    "data",
    "prepare",
    "scale",
    "sweep",
    "submit",
)
VERBS = {name: _ALL[name] for name in _ORDER}
