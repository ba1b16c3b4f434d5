"""Makes quantized weights dense once on a CPU, where XLA multiplies narrow types slower than
float32."""

from typing import Any

import jax

from bigmodel_jax.core import device_memory
from bigmodel_jax.core.channels import Channeled
from bigmodel_jax.core.storage import stored
from bigmodel_jax.inference.slots import cache_dtype

SHARE = 0.5  # the most host memory that dense weights may take, as a share


def widened(weights: Any) -> Any:
    """Makes quantized weights dense if they are on one CPU with enough memory; else returns them
    unchanged.
    """
    nodes = [x for x in jax.tree.leaves(weights, is_leaf=stored) if _is_widened(x)]
    if not nodes or not _on_one_cpu(nodes):
        return weights
    dtype = cache_dtype(weights)
    room = device_memory.host_memory()
    if room is None or sum(x.size for x in nodes) * dtype.itemsize > SHARE * room:
        return weights
    make = jax.jit(lambda node: node.dense(dtype))
    return jax.tree.map(lambda x: make(x) if _is_widened(x) else x, weights, is_leaf=stored)


def _is_widened(x: Any) -> bool:
    """Whether a weight may be made dense. An int8 weight by columns may not: its products round
    inputs, too.
    """
    return stored(x) and not isinstance(x, Channeled)


def _on_one_cpu(nodes: list) -> bool:
    arrays = [x for x in jax.tree.leaves(nodes) if isinstance(x, jax.Array)]
    devices = {device for x in arrays for device in x.devices()}
    return len(devices) == 1 and devices.pop().platform == "cpu"
