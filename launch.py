"""The one launcher: `python launch.py` says what there is."""

from bigmodel_jax.core import interrupts

if __name__ == "__main__":
    interrupts.install()  # before the imports, which take a second
    from bigmodel_jax.cli import main

    main()
