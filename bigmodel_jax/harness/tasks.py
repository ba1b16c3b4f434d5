"""Tasks of lm-eval by name, by YAML file or by a folder of YAML files, and their evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from bigmodel_jax.core import processes
from bigmodel_jax.core.spelling import nearest


def load(asked: Sequence[str]) -> list[Any]:
    """The tasks and groups; ValueError, one line, for one that is not there or whose data cannot be read."""
    folders = [str(Path(one).parent if Path(one).is_file() else Path(one)) for one in asked if Path(one).exists()]
    by_name = [one for one in asked if not Path(one).exists()]
    # The index of the tasks that ship takes seconds: it is read where a name is not among the files that were given.
    manager = TaskManager(include_path=folders, include_defaults=bool(by_name))
    found = []
    for one in asked:
        for name in _names(one, manager):
            found += processes.in_turn("harness", lambda name=name, one=one: _load(manager, name, one))
    return found


def _names(one: str, manager: TaskManager) -> list[str]:
    """What an entry of `--harness` asks for, as lm-eval is told it."""
    path = Path(one)
    if path.is_dir():
        own = TaskManager(include_path=[str(path)], include_defaults=False).all_subtasks
        if not own:
            raise ValueError(f"--harness {one}: the folder holds no task of lm-eval, a YAML file with `task:`")
        return own
    if path.is_file() or one in manager.all_tasks:
        return [one]
    if path.suffix in (".yaml", ".yml") or "/" in one:
        raise ValueError(f"--harness {one}: no such file")
    known = manager.all_tasks
    raise ValueError(f"--harness {one}: lm-eval has no such task{nearest(one, known)}; it knows {len(known):,}")


def _load(manager: TaskManager, name: str, one: str) -> list[Any]:
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever a YAML file, its functions or the reading of its data raise
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"--harness {one}: the task cannot be loaded ({type(error).__name__}: {text})") from error
    groups = list(loaded["groups"].values())
    return groups[:1] or list(loaded["tasks"].values())


def run(model: LM, tasks: Sequence[Any], **how: Any) -> dict[str, Any]:
    """lm-eval's results, the answers under "samples"."""
    # It would ask git for the commit of whatever folder the command is run in.
    with mock.patch.object(evaluator, "get_git_commit_hash", return_value=None):
        found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), task_manager=_Loaded(), log_samples=True, **how)
    return found or {}


class _Loaded(TaskManager):
    """For tasks that are loaded: no index is read."""

    def __init__(self):
        super().__init__(include_defaults=False)
