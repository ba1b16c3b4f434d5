"""Arrays read through Orbax, whose failures become one line."""

import contextlib
import gc
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigmodel_jax.checkpoint import manifest
from bigmodel_jax.checkpoint.manifest import Damaged


def read(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The trees of `wanted`, each from its own Orbax folder; Damaged, without any noise, where one cannot be read.

    Every process reads its own shards alone and then all agree: Orbax's own barriers would leave the others waiting
    for one that met a damaged file.
    """
    from orbax.checkpoint import v1 as ocp

    me, trees, text = jax.process_index(), None, ""
    context = ocp.Context()
    if jax.process_count() > 1:
        options = context.multiprocessing_options
        options.primary_host, options.active_processes, options.barrier_sync_key_prefix = me, {me}, f"reader{me}"
    with _no_afterwords():
        try:
            with context:
                trees = ocp.load_checkpointables(folder, wanted)
        except (ValueError, KeyError, TypeError, OSError) as error:
            text = manifest.reason(error).replace(f"{folder}/", "")
        if text:
            gc.collect()
    failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(bool(text))))
    if failed.size:
        raise Damaged(text or f"process {failed[0]} could not read it")
    return trees


@contextlib.contextmanager
def _no_afterwords():
    """Silences the tasks that a failed Orbax load abandons: each would print a page when collected."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    was_disabled, logger.disabled, sys.unraisablehook = logger.disabled, True, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logger.disabled, sys.unraisablehook = was_disabled, hook


def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """`x` with a sharding: its own, or the first device."""
    if x.sharding is not None:
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
