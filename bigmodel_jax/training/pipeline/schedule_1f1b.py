"""The 1F1B schedule: which microbatch passes which stage at which tick.

There are n stages, m microbatches in waves of n, and r rounds. Forward passes are those of
nn/pipeline.py: microbatch i of wave w is at stage s in round j at tick w n r + i + j n + s.
Backward passes mirror them `delay` ticks later: the last stage, round and microbatch of a wave come
first.
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
    """The microbatch and round of each stage at every tick.

    n is the number of stages, m of microbatches, r of rounds.
    """

    n: int
    m: int
    r: int

    @property
    def period(self) -> int:
        """The ticks between two waves."""
        return self.n * self.r

    @property
    def delay(self) -> int:
        """The tick at which the first wave has passed all layers and its backward pass begins."""
        return self.period + self.n - 1

    @property
    def one_way(self) -> int:
        """The ticks of all forward passes."""
        return pipeline.ticks(self.n, self.m, self.r)

    def forward(self, t: Any) -> tuple[Any, Any, Any]:
        """(valid, microbatch, round), each (n,), of every stage's forward pass at tick t."""
        valid, wave, round_, place = self._place(t - np.arange(self.n))
        return valid, wave * self.n + place, round_

    def backward(self, t: Any) -> tuple[Any, Any, Any]:
        """(valid, microbatch, round), each (n,), of every stage's backward pass at tick t."""
        valid, wave, round_, place = self._place(t - self.delay - np.arange(self.n)[::-1])
        return valid, wave * self.n + self.n - 1 - place, self.r - 1 - round_

    def _place(self, order):
        valid = (order >= 0) & (order < self.m * self.r)
        order = order.clip(0, self.m * self.r - 1)
        return valid, order // self.period, order % self.period // self.n, order % self.n

    def place_of_two_waves(self, microbatch: Any, round_: Any) -> Any:
        """The index of a microbatch and round in arrays that hold two waves."""
        return microbatch % (2 * self.n) * self.r + round_

    def slot(self, microbatch: jax.Array, round_: jax.Array) -> jax.Array:
        """The slot in which activations wait for this backward pass (`slots`)."""
        return jnp.asarray(self.slots()[0])[microbatch, round_]

    @functools.cache  # noqa: B019 - a program makes only a few schedules
    def slots(self) -> tuple[np.ndarray, int]:
        """The slots (m, r) in which a stage's activations wait, and the number of slots.

        Activations wait longest at stage 0, so two passes that can share a slot there can share it
        at every stage.
        """
        table, free, busy, num = np.zeros((self.m, self.r), np.int32), [], [], 0
        ticks = range(self.delay + self.one_way)
        # The tick of each backward pass at stage 0, by microbatch and round.
        going = {tuple(map(int, (i[0], j[0]))): t for t in ticks for v, i, j in [self.backward(t)] if v[0]}
        for t in ticks:
            # Slots whose backward pass is over become free again.
            while busy and busy[0][0] < t:
                heapq.heappush(free, heapq.heappop(busy)[1])
            valid, i, j = (int(a[0]) for a in self.forward(t))
            if valid:
                slot, num = (heapq.heappop(free), num) if free else (num, num + 1)
                table[i, j] = slot
                heapq.heappush(busy, (going[i, j], slot))
        return table, num
