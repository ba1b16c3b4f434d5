"""Reads arrays through Orbax, and turns its failures into one line."""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.checkpoint import bucket, manifest
from bigmodel_jax.checkpoint.manifest import Damaged
from bigmodel_jax.core import interrupts, processes


def together[T](read: Callable[[], T]) -> T:
    """The result of `read()`. If one process finds damage, all raise Damaged.

    So all processes continue with the same checkpoint.
    """
    found, text = None, ""
    try:
        found = read()
    except Damaged as error:
        text = str(error) or "damaged"
    bad = processes.failed(bool(text))
    if bad is not None:
        raise Damaged(text or f"process {bad} could not read it")
    return found


def read(folder: Path, wanted: dict[str, Any], *, some: bool = False) -> dict[str, Any]:
    """The trees of `wanted`, each read from its own Orbax folder.

    wanted: {field: tree of shapes with shardings}. some: whether a tree may ask for fewer leaves
    than were saved. Raises Damaged, and prints nothing, if a tree cannot be read.

    Every process reads only its own shards, and `together` makes all agree. With Orbax's own
    barriers the other processes would wait for one that met a damaged file.
    """
    from orbax.checkpoint import v1 as ocp

    manifest.check_files(folder, list(wanted))
    me, text = jax.process_index(), ""
    context = ocp.Context()
    context.pytree.loading.partial_load = some
    if jax.process_count() > 1:
        options = context.multiprocessing_options
        # Each process acts as a primary host of its own, so Orbax sets no barrier between the
        # processes.
        options.primary_host, options.active_processes, options.barrier_sync_key_prefix = me, {me}, f"reader{me}"
    with _no_afterwords():
        try:
            with context:
                return ocp.load_checkpointables(folder, wanted)
        except (ValueError, KeyError, TypeError, OSError) as error:
            interrupts.obey()  # Orbax turns an Interrupt into a ValueError, which says nothing about the checkpoint
            text = manifest.reason(error).replace(f"{folder}/", "")
            bucket.check_answered(folder, text)
            logging.getLogger("asyncio").addFilter(_retrieved)  # an abandoned task may be collected after this block
        # Collect the abandoned tasks here, where their messages are silenced.
        gc.collect()
    raise Damaged(text)


def _retrieved(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Task exception was never retrieved")


@contextlib.contextmanager
def _no_afterwords():
    """Silences the tasks that a failed Orbax load abandons.

    Each would print a page when collected.
    """
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    was_disabled, logger.disabled, sys.unraisablehook = logger.disabled, True, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logger.disabled, sys.unraisablehook = was_disabled, hook


def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """`x` with a sharding: its own or, without one, the first device."""
    if x.sharding is not None:
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
