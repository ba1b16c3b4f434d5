"""A functional JAX training stack: pure models, jit-compiled sharded steps, one launcher.

    core        parameter specs, meshes and sharding rules, precision, metrics
    nn          layers as functions
    models      one model family per file
    objectives  one training task (a loss and its metrics) per file
    data        sources of examples, turned into global batches
    optim       an optax optimizer built from a config
    config      the dataclass that describes one run
    training    train state, step, evaluation, loop
    checkpoint  saving and restoring arrays
    inference   generation of text and images
    pretrained  import and export of published weights
    cluster     jobs of several processes
    plan        memory and time of a run, computed before it starts
    scaling     one step timed on 1, 2, 4 devices
    report      metrics, plots, pages
    verbs, cli  the command line

To read the code, start with configs/lm_tiny.py, then launch.py and training/run.py.
"""

from bigmodel_jax import runtime

# This runs before JAX starts, because every entry point (a script, a notebook, a benchmark, the
# launcher) imports this package first.
runtime.quiet_tpu_runtime()
