"""A function over items, in this process or in several, with the results in the order of the items."""

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

AHEAD = 2  # items for each process that are read and not yet answered

_work: Callable | None = None  # of a worker process


def mapped[A, B](work: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[tuple[A, B]]:
    """(item, work(item)) of each item. `items` is read no further than AHEAD items for each process.

    ValueError, one line, where a worker process dies.
    """
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    # A fork would copy the threads' locks of JAX and others in whatever state they are.
    pool = futures.ProcessPoolExecutor(workers, get_context("spawn"), _start, (packed(work),))
    try:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append((item, pool.submit(_run, item)))
            if len(waiting) > AHEAD * workers:
                yield _answered(*waiting.popleft())
        while waiting:
            yield _answered(*waiting.popleft())
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was ended from outside (memory?); the same command goes on from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _answered(item, answer: futures.Future):
    return item, answer.result()


class Packed(NamedTuple):
    """A value on its way to another process; `files` are the user's, by whose paths their classes are known."""

    files: tuple[str, ...]
    content: bytes


def packed(value: Any) -> Packed:
    own = tuple(name for name in sys.modules if os.path.isabs(name))  # as `user_code.import_file` names them
    return Packed(own, pickle.dumps(value))


def unpacked(value: Packed) -> Any:
    for file in value.files:
        user_code.import_file(Path(file))
    return pickle.loads(value.content)


def _start(work: Packed) -> None:
    """Prepares a worker process."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to obey
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = unpacked(work)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _run(item):
    return _work(item)
