"""`python -m bigmodel_jax` and the console script `bigmodel-jax` are `python launch.py`, from any folder."""

from bigmodel_jax.core import interrupts


def start() -> None:
    interrupts.install()  # before the imports, which take a second
    from bigmodel_jax.cli import main

    main()


if __name__ == "__main__":
    start()
