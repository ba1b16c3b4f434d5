"""Work on pictures by as many threads as there are cores: Pillow decodes and scales without the interpreter's lock."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator

CORES = len(os.sched_getaffinity(0))
AHEAD = 8  # tasks a thread that wait


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(CORES, thread_name_prefix="pictures")


def each(work: Callable[[int], None], count: int) -> None:
    """Calls `work` with 0 .. count - 1; raises what the first of them raises, once none is at work any more."""

    def share(first: int) -> None:
        for number in range(first, count, CORES):
            work(number)

    tasks = [_pool().submit(share, first) for first in range(min(CORES, count))]
    concurrent.futures.wait(tasks)
    for task in tasks:
        task.result()


def in_order[X, Y](work: Callable[[X], Y], items: Iterable[X]) -> Iterator[Y]:
    """work(item) of every item, in their order; a few items are in memory at a time."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        waiting.append(_pool().submit(work, item))
        if len(waiting) > AHEAD * CORES:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
