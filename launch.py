"""The one launcher: `python launch.py` says what there is."""

from bigmodel_jax.cli import main

if __name__ == "__main__":
    main()
