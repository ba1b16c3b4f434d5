"""Entry point of `python -m bigmodel_jax`, `bigmodel-jax` and `python launch.py`."""

import gc

from bigmodel_jax.core import interrupts


def start() -> None:
    """Installs the signal handlers, then runs the command line on `sys.argv`."""
    interrupts.install()  # first, because the imports below take about a second
    # Imports and tracing make many small objects that live on. Python would look through them for
    # cycles every 700 allocations, which takes half a second of a short run.
    gc.set_threshold(10_000, 20, 10)
    from bigmodel_jax.cli import main

    main()


if __name__ == "__main__":
    start()
