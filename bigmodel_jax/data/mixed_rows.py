"""The rows of a mixture, which are those of all parts one after another, and their order."""

import numpy as np

from bigmodel_jax.data import shuffle
from bigmodel_jax.data.base import Rows
from bigmodel_jax.data.mixture_order import SLOTS, Mixture, Stage, by_size, too_low


class MixedRows:
    """One split of a mixture. `order` is the training order, `given` counts each part's rows."""

    def __init__(
        self,
        parts: list[Rows],
        names: tuple[str, ...],
        stages: tuple[Stage, ...],
        max_epochs: tuple[float, ...] = (),
        tokens: int = 0,
    ):
        """Store the parts. `tokens` is the tokens of a row, 0 where a step counts examples."""
        self.parts, self.names, self.stages, self.max_epochs, self.tokens = parts, names, stages, max_epochs, tokens
        self.sizes = tuple(len(part) for part in parts)
        self.offsets = np.cumsum([0, *self.sizes])
        self._mixtures: dict[int, Mixture] = {}
        self._kinds = {train: _common(parts, train) for train in (True, False)}

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def counts(self) -> dict[str, int]:
        return {"rows": len(self)} | {f"rows of {n}": size for n, size in zip(self.names, self.sizes, strict=True)}

    def mixture(self, batch_size: int) -> Mixture:
        """Return the order of the mixture for this batch size."""
        if batch_size not in self._mixtures:
            # The parts' sizes are known only here, so the config itself cannot check a temperature.
            for i, stage in enumerate(self.stages):
                if not stage.weights and (low := too_low(by_size(self.sizes, stage.temperature))):
                    raise ValueError(
                        f"data.stages.{i}.temperature = {stage.temperature:g}: the smallest part's share is less than "
                        f"1/{SLOTS} ({low[0]:g} of the largest's); raise it, or give weights"
                    )
            self._mixtures[batch_size] = Mixture(self.stages, batch_size, self.sizes, self.max_epochs)
        return self._mixtures[batch_size]

    def num_examples(self, batch_size: int) -> int | None:
        """Return the number of training examples; None if they are endless."""
        return self.mixture(batch_size).end

    def given(self, batches: int, batch_size: int) -> dict[str, float]:
        """Return the examples, tokens and epochs of each part before batch number `batches`."""
        found = {}
        counts = self.mixture(batch_size).given(batches * batch_size).tolist()
        for name, size, count in zip(self.names, self.sizes, counts, strict=True):
            found[f"mixture/{name}/examples"] = count
            if self.tokens:
                found[f"mixture/{name}/tokens"] = count * self.tokens
            found[f"mixture/{name}/epochs"] = count / size
        return found

    def parts_between(self, low: int, high: int) -> dict[str, tuple[int, int]]:
        """Return {name: rows [low, high)} for the parts that have some of these rows."""
        found = {}
        for name, first, end in zip(self.names, self.offsets[:-1], self.offsets[1:], strict=True):
            if max(low, first) < min(high, end):
                found[name] = max(low, int(first)), min(high, int(end))
        return found

    def order(self, start: np.ndarray, examples: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the row numbers of these training examples."""
        source, nth = self.mixture(batch_size).draw(examples)
        rows = np.empty_like(examples)
        for i in np.unique(source):
            # Each part is shuffled with a seed of its own, which is derived from the run's.
            here, own = source == i, shuffle.mix(start + np.array([i + 1], np.uint64) * shuffle.GOLDEN)
            rows[here] = self.offsets[i] + shuffle.order(own, nth[here], len(self.parts[i]))
        return rows

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        # offsets[i] is the number of the first row of part i.
        part = np.searchsorted(self.offsets, indices, side="right") - 1
        kinds = self._kinds[noise is not None]
        out = {name: np.empty((len(indices), *shape), dtype) for name, (shape, dtype) in kinds.items()}
        for i in np.unique(part):
            here = part == i
            found = self.parts[i].batch(indices[here] - self.offsets[i], None if noise is None else noise[here])
            for name, x in out.items():
                x[here] = found[name]
        return out


def _common(parts: list[Rows], train: bool) -> dict[str, tuple]:
    """Return {name: (shape, dtype)} of the arrays that all parts give.

    Raises ValueError where two parts give an array differently.
    """
    noise = np.zeros(1, np.uint64) if train else None
    rows = [part.batch(np.zeros(1, np.int64), noise) for part in parts]
    kinds = [{name: (x.shape[1:], x.dtype) for name, x in row.items()} for row in rows]
    for i, kind in enumerate(kinds):
        # Training needs the same arrays from all parts. An evaluation leaves out an array that a
        # part lacks.
        for name in kind.keys() | kinds[0].keys() if train else kind.keys() & kinds[0].keys():
            if kind.get(name) != kinds[0].get(name):
                said = [f"{k[name][1]} {k[name][0]}" if name in k else "none" for k in (kind, kinds[0])]
                raise ValueError(
                    f"data.parts.{i}: its rows have {name!r} as {said[0]}, those of data.parts.0 as {said[1]}"
                )
    return {name: kind for name, kind in kinds[0].items() if all(name in other for other in kinds)}
