"""The verbs of the command line: what each one does, and what it says of itself."""

from bigmodel_jax.verbs import explaining, jobs, planning, preparing, runs, scaling, serving, sweeping, weights

_FILES = (runs, weights, planning, scaling, sweeping, jobs, preparing, explaining, serving)
_ALL = {name: verb for file in _FILES for name, verb in file.VERBS.items()}
# In the order of their use.
_ORDER = (
    "plan",
    "train",
    "eval",
    "generate",
    "import",
    "export",
    "serve",
    "report",
    "explain",
    "data",
    "prepare",
    "scale",
    "sweep",
    "submit",
)
VERBS = {name: _ALL[name] for name in _ORDER}
