"""Writes docs/optimizers.md from the results of the tests.

uv run --group dev pytest tests/optim/optimizer_table_test.py -m exhaustive --optimizers-table
docs/optimizers.md
"""

from pathlib import Path

HEAD = """# Optimizers and schedules

The tables show each optimizer of `optim.name` and each schedule of `optim.schedule` at its own
best learning rate. This command writes the page:

```
uv run --group dev pytest tests/optim/optimizer_table_test.py -m exhaustive --optimizers-table docs/optimizers.md
```

- **digits**: a perceptron with 1.5 thousand parameters on scikit-learn's 1,797 handwritten
  digits, in batches of 64. **decoder**: a Llama with 23 thousand parameters on a Markov chain of
  64 tokens, in batches of 8 rows of 16 tokens; the lowest possible loss is log 4 = 1.386 nats.
  Each run takes 200 steps. The first losses are 2.49 and 4.16.
- **rate**: the best learning rate of 0.0003, 0.001, 0.003, … 10. **loss**: the mean training loss
  of the last 20 steps at that rate, in nats.
- **8 devices**: the largest difference of a parameter between FSDP and one device after four
  steps on the digits (bar 1e-4). On both meshes, a run that resumes from a save after two steps
  has the same state, bit for bit. `acprop` has no bar: it divides by the second moment of the
  previous step, with an eps of 1e-16, and this moment is at first as small as rounding errors.
- All other settings are the defaults of `OptimConfig`: betas 0.9 and 0.95, clipping at 1, and no
  weight decay. In the first table the schedule is constant, without a warm-up. The second table
  uses AdamW. So few steps on such small data suggest where a search for the rate can start. They
  do not say which optimizer is best for a large model.

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
