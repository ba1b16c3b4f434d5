"""A functional JAX training stack: pure models, jit-compiled sharded steps, one launcher.

    core        parameters as specs, meshes and rules, precision, metrics: the algebra of pytrees
    nn          layers as functions          models      one family per file       objectives  one task per file
    data        sources to global batches    optim       optax from a config       config      one run, described
    training    state, step, evaluation, loop            checkpoint  Orbax behind one file
    inference   generation                   report      metrics, plots, the page  cli         the verbs

Start with configs/lm_tiny.py, then launch.py and training/loop.py.
"""
