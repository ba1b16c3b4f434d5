"""How saves in a bucket differ: the mark of a finished save, and the time limit for a silent
store."""

import re
from pathlib import Path

from bigmodel_jax.core import paths

MARK = "commit_success.txt"  # the last file that Orbax writes of a save, because a store has no rename
# TensorStore's settings: a request is tried for 50 s
RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "16s"}
SILENT = re.compile("retry attempts failed|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|CURL error")


def is_finished(folder: Path) -> bool:
    """Whether a step's folder holds a complete save.

    A local folder gets its name only when its save is complete.
    """
    return not paths.is_remote(folder) or (folder / MARK).is_file()


def bound_retries() -> None:
    """Limits a store's retries, so that a store that does not answer raises an error within a
    minute.

    By default TensorStore retries for a quarter of an hour. Orbax does not pass options on to
    TensorStore, so this function changes Orbax's own contexts.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    # Orbax has two TensorStore contexts, with and without OCDBT.
    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context["gcs_request_retries"] = RETRIES


def check_answered(folder: Path, reason: str) -> None:
    """Raises Unanswered if a save could not be read because the store is silent, and not because of
    damage.

    reason: the text of the failure.
    """
    if paths.is_remote(folder) and SILENT.search(reason):
        raise paths.Unanswered(f"{folder}: the object store does not answer, or refuses: {reason}")
