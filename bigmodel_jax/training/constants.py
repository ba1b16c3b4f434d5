"""A run's constant parameters on disk: kept once, beside the checkpoints, which do not repeat them.

`<run>/constants/0/` is one save of checkpoint/store.py, atomic and with a digest per leaf, and opens on every mesh.
"""

import shutil
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.core import params, processes
from bigmodel_jax.training.state import abstract_constants

FOLDER = "constants"
COPY_BYTES = 2**30  # a save holds so much of them in the host's memory at a time


def keep(run_dir: Path, config: Config, constants: params.Tree) -> None:
    """Writes them before the run's first checkpoint, in the place of what a start left that saved none.

    All processes call this together. OSError where they cannot be written.
    """
    if not constants:
        return
    if processes.first():
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    processes.meet("constants")
    with store.open_store(run_dir / FOLDER, CheckpointConfig(), copy_bytes=COPY_BYTES) as saves:
        store.save(saves, 0, {FOLDER: constants}, {}, config_file.to_json(config))


def load(config: Config, run_dir: Path, mesh) -> params.Tree:
    """The constants that the run keeps, in the layout of `mesh`; ValueError, one line, where they are gone or damaged."""
    wanted = abstract_constants(config, mesh)
    if not wanted:
        return {}
    folder = run_dir / FOLDER
    if not (folder / "0").is_dir():
        raise ValueError(
            f"run_dir = {str(run_dir)!r}: {folder} is gone, which holds the constant parameters of all its checkpoints; "
            "copy it back, or start another run"
        )
    with store.open_store(folder, CheckpointConfig()) as saves:
        return store.restore_params(saves, {FOLDER: wanted}, 0)[FOLDER]
