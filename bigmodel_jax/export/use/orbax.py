"""Restores the parameters of this folder; needs orbax-checkpoint and jax.

python use.py                      the arrays that the folder holds
python use.py --outputs out.npz    the same arrays by their paths, as a file of numpy
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

HERE = Path(__file__).resolve().parent


def params():
    """The tree of parameters, on the first device whatever they were saved from."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(HERE / "params").item_metadata.tree
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)
        return checkpointer.restore(HERE / "params", wanted)


def main():
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
