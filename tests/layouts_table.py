"""docs/layouts.md from the tests' own results.

uv run --group dev pytest tests/multidevice -m "slow or not slow" --layouts-table docs/layouts.md
"""

from pathlib import Path

HEAD = """# Layouts

Every layout is compared with one device: the same five AdamW steps on 8 virtual CPU devices, in
float32, with tiny models of four kinds. This command writes the page:

```
uv run --group dev pytest tests/multidevice -m "slow or not slow" --layouts-table docs/layouts.md
```

- **loss**: the largest relative difference of the five losses (bar 2e-6).
- **parameters**: the largest difference of any parameter after the steps (bar 2e-5). The tests also
  assert from the live arrays that every parameter and both Adam moments lie on each device as the
  rules say.
- **moves**: measured / owed bytes (bar 5 %). The measured bytes are those of the buffers that one
  step's collectives gather or sum over a mesh axis, read from the compiled program. Loops are
  multiplied out, and a sum over two axes counts on both. The owed bytes follow from the layout's
  formula.

The formulas are in bytes:

| symbol | meaning |
| --- | --- |
| P | the parameters that a device has after `tensor` has cut them |
| C | the part of P that `fsdp` cuts |
| W | the part of C in the layers, gathered forward and backward; the rest of C is gathered once |
| A | one activation: batch / (data x fsdp), T, D |
| G | one number per token and expert |
| L | the number of layers |
| S | the part of C that a CPU's compiler sums whole before it cuts: vectors, tables for lookups alone, an untied head |
| T | a tied table, whose two gradients a CPU's compiler sums apart |
| K | a kernel that `fsdp` cuts and `tensor` does not (a router, one at either end); a CPU spreads its product over `tensor` |

A CPU's compiler has no reduce-scatter, and sums the gradients of products that share an input one
by one. [results.md](results.md#collectives-on-tpus) says what TPUs do.

The rows of pipelines, rings, and exchanges of heads and tokens use Adam's eps 1e-5. Their bytes are
those that a device sends over the named axis, and only what that axis owes:

| symbol | meaning |
| --- | --- |
| x | one microbatch's activation |
| s | what the layers share of a microbatch (positions, segments, cosines) |
| g | the weights of one group of layers, which change hands where there are several rounds |
| q, kv | the queries, and the keys and values, of a device's tokens |
| t | the activations of a device's tokens in all places that they may be sent to |

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
