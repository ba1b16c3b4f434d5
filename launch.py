"""The one launcher: `python launch.py` says what there is."""

from bigmodel_jax.__main__ import start

if __name__ == "__main__":
    start()
