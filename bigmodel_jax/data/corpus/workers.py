"""Applies a function to items in one or several processes. The results come in order."""

import collections
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_jax.core import user_code

AHEAD = 2  # how many unanswered items are sent to each process

_work: Callable | None = None  # the function of a worker process


def mapped[A, B](work: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[tuple[A, B]]:
    """Yield (item, work(item)) for each item.

    `items` is read at most AHEAD items per process beyond the results. Raises a one-line ValueError
    where a worker process dies.
    """
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    # A forked process would copy the locks of JAX's threads in whatever state they are.
    pool = futures.ProcessPoolExecutor(workers, get_context("spawn"), _start, (packed(work),))
    try:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append((item, pool.submit(_run, item)))
            # Results are awaited in order, and few items wait, so that memory stays bounded.
            if len(waiting) > AHEAD * workers:
                yield _answered(*waiting.popleft())
        while waiting:
            yield _answered(*waiting.popleft())
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed (out of memory?); the same command continues from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _answered(item, answer: futures.Future):
    return item, answer.result()


class Packed(NamedTuple):
    """A pickled value for another process, and the user's source files that define its classes."""

    files: tuple[str, ...]
    content: bytes


def packed(value: Any) -> Packed:
    """Pickle a value together with the paths of the user's imported source files."""
    # `user_code.import_file` names a module by its path.
    own = tuple(name for name in sys.modules if os.path.isabs(name))
    return Packed(own, pickle.dumps(value))


def unpacked(value: Packed) -> Any:
    """Import the user's files, and unpickle the value."""
    for file in value.files:
        user_code.import_file(Path(file))
    return pickle.loads(value.content)


def _start(work: Packed) -> None:
    """Prepare a worker process."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the first process reacts to Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = unpacked(work)


def _end_with_parent() -> None:
    """End the worker when its parent dies. It would otherwise wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _run(item):
    return _work(item)
