"""docs/layouts.md from the tests' own results.

uv run --group dev pytest tests/multidevice -m "slow or not slow" --layouts-table docs/layouts.md
"""

from pathlib import Path

HEAD = """# Layouts

Every layout against one device: the same five AdamW steps on 8 virtual CPU devices, float32, tiny models of four kinds.
Written by

```
uv run --group dev pytest tests/multidevice -m "slow or not slow" --layouts-table docs/layouts.md
```

- **loss**: largest relative difference of the five losses (bar 2e-6). **parameters**: largest difference of any parameter
  after them (bar 2e-5). Every parameter and both Adam moments lie on each device as the rules say (asserted from the live
  arrays).
- **moves**: bytes of the buffers that one step's collectives gather or sum over a mesh axis, read from the compiled program
  (loops multiplied out; a sum over two axes counts on both) / what the layout owes by its formula (bar 5 %).

In the formulas, in bytes: P, the parameters that a device has after `tensor` has cut them; C, those of them that `fsdp`
cuts; W, those of C in the layers, which are gathered forward and backward (the rest, at either end, once); A, one
activation (batch / (data x fsdp), T, D); G, one number per token and expert; L, the layers. A CPU's compiler adds S, those
of C that it sums whole before it cuts (vectors, tables that are only looked up, and the untied head), T, a tied table,
whose two gradients it sums apart, and K, a kernel that `tensor` leaves whole and whose product it spreads over `tensor` all
the same where `fsdp` cuts it (a router, those at either end); it has no reduce-scatter, and sums the gradients of products
that share an input one by one. What TPUs do is in [results.md](results.md#collectives-on-tpus).

Pipelines, rings and exchanges of heads and of tokens follow: with Adam's eps at 1e-5, and of what they move only what the axis
itself owes, in bytes that a device sends over it. x, one microbatch's activation; s, what the layers share of it (positions,
segments, cosines); g, the weights of one group of layers, which change hands where there are several rounds; q and kv, queries,
and keys and values, of a device's tokens; t, their activations in all places that they may be sent to.

"""


class Results:
    """A pytest plugin: collects from the reports of all workers, writes at the end."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, str, str], list[str]] = {}
        self.digests: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "layout":
                layout, case, mesh, loss, weight, moved = value
                passed = "" if report.passed else " FAILED"
                cell = "; ".join(move(*each) for each in moved) or "-"
                cells = ["-" if x is None else f"{x:.1e}" for x in (loss, weight)] + [cell]
                before = self.rows.get((layout, mesh, f"{case}{passed}"), ["-"] * 3)
                self.rows[layout, mesh, f"{case}{passed}"] = [
                    b if a == "-" else a for a, b in zip(cells, before, strict=True)
                ]
            elif name == "digests":
                self.digests[value[0]] = value[1]

    def pytest_sessionfinish(self) -> None:
        titles = ("layout", "mesh", "model", "loss", "parameters", "moves: measured / owed")
        lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *self.lines()]
        lines += ["", *deterministic(self.digests)] if self.digests else []
        self.path.write_text(HEAD + "\n".join(lines) + "\n")

    def lines(self) -> list[str]:
        """Rows of one layout together, whichever worker ran them."""
        first = {layout: i for i, (layout, *_) in reversed(list(enumerate(self.rows)))}
        ordered = sorted(self.rows.items(), key=lambda row: first[row[0][0]])
        return [f"| {' | '.join((*key, *cells))} |" for key, cells in ordered]


def move(axis, measured: float, owed: float, formula: str) -> str:
    return f"{axis}: {measured / 1e3:.1f} / {owed / 1e3:.1f} kB = {measured / max(owed, 1):.3f} ({formula})"


def deterministic(digests: dict[str, dict]) -> list[str]:
    """Hashes of every bit of the parameters after 20 steps."""
    lines = ["## parallel.deterministic", "", "SHA-256 (its first 16 digits) of all parameters after 20 steps.", ""]
    lines += ["| model | mesh | parameters | losses and norms |", "| --- | --- | --- | --- |"]
    for case, found in digests.items():
        lines += [f"| {case} | {mesh} | `{weights}` | `{rest}` |" for mesh, (weights, rest) in found.items()]
    return lines
