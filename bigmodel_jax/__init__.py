"""A functional JAX training stack: pure models, jit-compiled sharded steps, one launcher.

    core        parameters as specs, meshes and rules, precision, metrics: the algebra of pytrees
    nn          layers as functions          models      one family per file       objectives  one task per file
    data        sources to global batches    optim       optax from a config       config      one run, described
    training    state, step, evaluation, loop            checkpoint  Orbax behind one file
    inference   text and images generated    pretrained  published weights in, out  cluster    jobs of several processes
    plan        a run's cost, known before   scaling     a step on 1, 2, 4 devices  report     metrics, plots, pages
    verbs, cli  the command line

Start with configs/lm_tiny.py, then launch.py and training/run.py.
"""

from bigmodel_jax import runtime

# Whatever starts JAX after this import: a script, a notebook, a benchmark, the launcher.
runtime.quiet_tpu_runtime()
