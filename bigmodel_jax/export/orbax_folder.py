"""Exports a run's weights as a plain Orbax checkpoint: the parameter tree, without the training
state.
"""

from pathlib import Path

import orbax.checkpoint as ocp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.core.precision import Float
from bigmodel_jax.export.subject import Written, open_subject

PARAMS = "params"


def write(
    config: Config, run_dir: Path, folder: Path, which: str, *, dtype: Float = "float32", adapter: str = ""
) -> Written:
    """Writes `folder`/params, which `orbax.checkpoint.StandardCheckpointer` restores."""
    subject = open_subject(config, run_dir, which=which, adapter=adapter, dtype=dtype)
    # Orbax takes absolute paths only. Leaving the block waits for the asynchronous save.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / PARAMS, params.from_paths(subject.weights))
    return Written(f"{subject.kind}: {len(subject.weights)} arrays, {dtype}", subject.step)
