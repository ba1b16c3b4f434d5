"""Restores the parameters of this folder. It needs orbax-checkpoint and jax.

python use.py                      lists the arrays
python use.py --outputs out.npz    lists them and writes them by their paths with NumPy
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

HERE = Path(__file__).resolve().parent


def params():
    """The parameter tree on the first device, whatever devices it was saved from."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        # A restore without target shapes would ask for the devices of the save.
        saved = checkpointer.metadata(HERE / "params").item_metadata.tree
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)
        return checkpointer.restore(HERE / "params", wanted)


def main():
    """Reads the command line, lists the arrays and writes them if asked."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--outputs", type=Path)
    given = options.parse_args()
    found, _ = jax.tree_util.tree_flatten_with_path(params())
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}
    for name, x in arrays.items():
        print(name, x.dtype, x.shape)
    if given.outputs:
        np.savez(given.outputs, **{name: np.asarray(x, np.float32) for name, x in arrays.items()})


if __name__ == "__main__":
    main()
