"""`python -m bigmodel_jax` is `python launch.py`, from any folder."""

from bigmodel_jax.cli import main

if __name__ == "__main__":
    main()
