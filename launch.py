"""The launcher: `python launch.py` without arguments lists the verbs."""

from bigmodel_jax.__main__ import start

if __name__ == "__main__":
    start()
