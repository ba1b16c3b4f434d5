"""docs/optimizers.md from the tests' own results.

uv run --group dev pytest tests/optim/optimizer_table_test.py -m exhaustive --optimizers-table docs/optimizers.md
"""

from pathlib import Path

HEAD = """# Optimizers and schedules

Each one that `optim.name` and `optim.schedule` take, from its own best rate. Written by

```
uv run --group dev pytest tests/optim/optimizer_table_test.py -m exhaustive --optimizers-table docs/optimizers.md
```

- **digits**: a perceptron of 1.5 thousand parameters on scikit-learn's 1,797 written digits, in batches of 64; **decoder**: a
  Llama of 23 thousand on a chain of 64 tokens, whose least loss is log 4 = 1.386 nats, in batches of 8 rows of 16. Each takes
  200 steps, and the first loss is 2.49 and 4.16.
- **rate**: the best of 0.0003, 0.001, 0.003, … 10; **loss**: the mean training loss of the last 20 steps at that rate, in nats.
- **8 devices**: the largest difference of a parameter after four steps on the digits under FSDP from one device's (bar
  1e-4). On both meshes a run that goes on from a save after two steps has the same state, bit for bit. `acprop` has no bar: it
  divides by the second moment of the step before, which is at first as small as rounding, with an eps of 1e-16.
- Whatever else a rule takes is as `OptimConfig` has it: betas 0.9 and 0.95, clipping at 1. There is no weight decay. The
  schedule is constant, without a warm-up; those of the second table are AdamW's. So few steps on so little say at which rate a
  search may begin. They do not say which rule is best for a large model.

"""
TITLES = ("digits: rate", "loss", "decoder: rate", "loss", "8 devices")


class Results:
    """A pytest plugin: collects from the reports of all workers, writes at the end."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, list[list[str]]] = {"optimizer": [], "schedule": []}

    def pytest_runtest_logreport(self, report) -> None:
        for name, value in report.user_properties if report.when == "call" else ():
            if name in self.rows:
                self.rows[name].append(value)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(HEAD + "\n\n".join("\n".join(self.lines(kind)) for kind in self.rows) + "\n")

    def lines(self, kind: str) -> list[str]:
        """Rows in the order of the package's own tables, whichever worker ran them."""
        from bigmodel_jax.optim.names import OPTIMIZERS
        from bigmodel_jax.optim.schedules import SCHEDULES

        order = [f"`{name}`" for name in (*OPTIMIZERS, *SCHEDULES, "one_cycle")]
        rows = sorted(self.rows[kind], key=lambda cells: order.index(cells[0]))
        titles = (f"`optim.{'name' if kind == 'optimizer' else 'schedule'}`", *TITLES)
        return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]
