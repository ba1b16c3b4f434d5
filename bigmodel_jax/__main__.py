"""Entry point of `python -m bigmodel_jax`, `bigmodel-jax` and `python launch.py`."""

from bigmodel_jax.core import interrupts


def start() -> None:
    """Installs the signal handlers, then runs the command line on `sys.argv`."""
    interrupts.install()  # first, because the imports below take about a second
    from bigmodel_jax.cli import main

    main()


if __name__ == "__main__":
    start()
