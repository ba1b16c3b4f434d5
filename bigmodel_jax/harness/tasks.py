"""Loads lm-eval tasks by name, YAML file or folder of YAML files, and evaluates them."""

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
    """The tasks and groups.

    Raises ValueError, one line, if one is missing or its data is unreadable.
    """
    folders = [str(Path(one).parent if Path(one).is_file() else Path(one)) for one in asked if Path(one).exists()]
    by_name = [one for one in asked if not Path(one).exists()]
    # lm-eval's index of built-in tasks takes seconds to read, so it is read only if a name is not a
    # given file.
    manager = TaskManager(include_path=folders, include_defaults=bool(by_name))
    found = []
    for one in asked:
        for name in _names(one, manager):
            found += processes.in_turn("harness", lambda name=name, one=one: _load(manager, name, one))
    return found


def _names(one: str, manager: TaskManager) -> list[str]:
    """The names or files that an entry of `--harness` stands for, as lm-eval accepts them."""
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
    except Exception as error:  # any exception of a YAML file, its functions or its data
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"--harness {one}: the task cannot be loaded ({type(error).__name__}: {text})") from error
    groups = list(loaded["groups"].values())
    return groups[:1] or list(loaded["tasks"].values())


def run(model: LM, tasks: Sequence[Any], **how: Any) -> dict[str, Any]:
    """lm-eval's results, with the answers under "samples"."""
    # lm-eval would run git to find the commit of the working directory.
    with mock.patch.object(evaluator, "get_git_commit_hash", return_value=None):
        found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), task_manager=_Loaded(), log_samples=True, **how)
    return found or {}


class _Loaded(TaskManager):
    """A manager for tasks that are already loaded. It reads no index."""

    def __init__(self):
        super().__init__(include_defaults=False)
