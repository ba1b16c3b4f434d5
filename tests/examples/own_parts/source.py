"""A source of texts that reads no file: sentences that count."""

import dataclasses

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import Source


@dataclasses.dataclass(frozen=True)
class Counting(Source):
    num: Count = 200

    def fingerprint(self, split, root):
        return f"counting to {self.num}, {split}"

    def records(self, split, root, bad):
        for n in range(self.num) if split == "train" else range(self.num, self.num + 20):
            yield f"number {n}", {"text": f"{n} and one is {n + 1}. "}
