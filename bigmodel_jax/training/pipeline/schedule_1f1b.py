"""Which microbatch passes which stage at which tick, where backward passes begin while microbatches still enter.

n stages, m microbatches, r rounds; waves of n microbatches. Forward passes are those of nn/pipeline.py: microbatch i of wave w
is at stage s in round j at tick w n r + i + j n + s. Backward passes are their mirror image, `delay` ticks later: the last
stage, round and microbatch of a wave come first.
"""

import dataclasses
import functools
import heapq
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.nn import pipeline


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which microbatch and round each of n stages is at, at every tick; m microbatches, r rounds."""

    n: int
    m: int
    r: int

    @property
    def period(self) -> int:
        """Ticks from wave to wave."""
        return self.n * self.r

    @property
    def delay(self) -> int:
        """The tick at which the first wave is back at home, and its backward pass begins."""
        return self.period + self.n - 1

    @property
    def one_way(self) -> int:
        return pipeline.ticks(self.n, self.m, self.r)

    def forward(self, t: Any) -> tuple[Any, Any, Any]:
        """(valid, microbatch, round) of every stage's forward pass at tick t, each (n,)."""
        valid, wave, round_, place = self._place(t - np.arange(self.n))
        return valid, wave * self.n + place, round_

    def backward(self, t: Any) -> tuple[Any, Any, Any]:
        """The same of its backward pass."""
        valid, wave, round_, place = self._place(t - self.delay - np.arange(self.n)[::-1])
        return valid, wave * self.n + self.n - 1 - place, self.r - 1 - round_

    def _place(self, order):
        valid = (order >= 0) & (order < self.m * self.r)
        order = order.clip(0, self.m * self.r - 1)
        return valid, order // self.period, order % self.period // self.n, order % self.n

    def place_of_two_waves(self, microbatch: Any, round_: Any) -> Any:
        """Where what is kept of two waves has this microbatch's: by wave, microbatch in it, and round."""
        return microbatch % (2 * self.n) * self.r + round_

    def slot(self, microbatch: jax.Array, round_: jax.Array) -> jax.Array:
        """Where what waits for these backward passes is kept (`slots`)."""
        return jnp.asarray(self.slots()[0])[microbatch, round_]

    @functools.cache  # noqa: B019 - a handful of schedules in a program's life
    def slots(self) -> tuple[np.ndarray, int]:
        """The slot (m, r) in which a stage's input waits for its backward pass, and how many slots there are.

        It waits longest at stage 0, and two that take turns in a slot there can do so at every stage.
        """
        table, free, busy, num = np.zeros((self.m, self.r), np.int32), [], [], 0
        ticks = range(self.delay + self.one_way)
        going = {tuple(map(int, (i[0], j[0]))): t for t in ticks for v, i, j in [self.backward(t)] if v[0]}
        for t in ticks:
            while busy and busy[0][0] < t:
                heapq.heappush(free, heapq.heappop(busy)[1])
            valid, i, j = (int(a[0]) for a in self.forward(t))
            if valid:
                slot, num = (heapq.heappop(free), num) if free else (num, num + 1)
                table[i, j] = slot
                heapq.heappush(busy, (going[i, j], slot))
        return table, num
