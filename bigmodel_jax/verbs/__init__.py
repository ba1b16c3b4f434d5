"""The verbs of the command line: what each one does, and what it says of itself."""

from bigmodel_jax.verbs import jobs, runs, weights

_ALL = runs.VERBS | weights.VERBS | jobs.VERBS
# In the order of their use.
VERBS = {name: _ALL[name] for name in ("train", "eval", "generate", "import", "export", "report", "data", "submit")}
