"""What is other about saves in a bucket: what marks a finished one, and how long a store that is silent is asked."""

import re
from pathlib import Path

from bigmodel_jax.core import paths

MARK = "commit_success.txt"  # Orbax's last file of a save, since there is no rename
RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "16s"}  # 50 s in all, by TensorStore
SILENT = re.compile("retry attempts failed|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|CURL error")


def is_finished(folder: Path) -> bool:
    """Whether a step's folder holds a whole save: here it has its name only then."""
    return not paths.is_remote(folder) or (folder / MARK).is_file()


def bound_retries() -> None:
    """A store that does not answer is an error within a minute: TensorStore would ask it for a quarter of an hour, and
    Orbax hands no option of TensorStore's on."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context["gcs_request_retries"] = RETRIES


def check_answered(folder: Path, reason: str) -> None:
    """Unanswered where `reason`, why a save could not be read, is the store's silence and no damage."""
    if paths.is_remote(folder) and SILENT.search(reason):
        raise paths.Unanswered(f"{folder}: the object store does not answer, or refuses: {reason}")
