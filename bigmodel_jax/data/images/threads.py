"""Runs work on images in one thread per core; Pillow releases the interpreter lock."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator

CORES = len(os.sched_getaffinity(0))
AHEAD = 8  # tasks that wait per thread, which bounds the memory


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(CORES, thread_name_prefix="pictures")


def each(work: Callable[[int], None], count: int) -> None:
    """Call `work` with 0 .. count - 1 in parallel.

    All threads finish before the exception of one of them is raised.
    """

    def share(first: int) -> None:
        for number in range(first, count, CORES):
            work(number)

    tasks = [_pool().submit(share, first) for first in range(min(CORES, count))]
    concurrent.futures.wait(tasks)
    for task in tasks:
        task.result()


def in_order[X, Y](work: Callable[[X], Y], items: Iterable[X]) -> Iterator[Y]:
    """Yield work(item) for every item in order. Only a few items are in memory at a time."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        waiting.append(_pool().submit(work, item))
        if len(waiting) > AHEAD * CORES:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
