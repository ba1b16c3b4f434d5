"""docs/models.md from the tests' own results.

uv run pytest tests/parity tests/contract -m "slow or not slow" --models-table docs/models.md
"""

import re
from pathlib import Path

from bigmodel_jax.models import MODELS

ROOT = Path(__file__).parents[1]
COLUMNS = ("forward", "backward", "training", "decode", "import", "export")
# The reference's name -> the name in MODELS, where it is not the same; what follows a hyphen is a head.
MODEL_OF = {
    "llama31": "llama",
    "moonlight": "deepseek",
    "opus_mt": "transformer",
    "t5_v11": "t5",
    "lstm": "rnn",
    "gru": "rnn",
    "resnet_basic": "resnet",
}
# The small config of a model, where it is not configs/<model>_tiny.py.
CONFIG_OF = {
    "llama": "lm_tiny",
    "mlp": "mnist_mlp",
    "cnn": "mnist_cnn",
    "vit": "vit_mnist",
    "resnet": "resnet_mnist",
    "efficientnet": "efficientnet_mnist",
    "dit": "dit_mnist",
    "rnn": "lstm_text",
    "linear": "linear_regression",
    "bag_of_embeddings": "text_classification",
}
HEAD = """# Models

Every family against its reference implementation: same weights, same inputs, float32 on a CPU. Written by

```
uv run pytest tests/parity tests/contract -m "slow or not slow" --models-table docs/models.md
```

- **forward**: largest difference of logits and hidden states, padding and packing included. **backward**: of any
  parameter's gradient, relative to its norm. **training**: largest difference of the loss over 20 AdamW steps.
  **decode**: largest difference of decoding with a cache. Bars: 1e-4, 1e-4, 1e-3, 1e-4; greedy ids are equal.
- **import**: the weights came through `launch.py import`'s name table. **export**: tensors whose bits differ after theirs →
  ours → theirs. **8 devices**: loss and gradients under FSDP and FSDP x TP equal one device's.
- `-` means that it does not apply (an encoder does not decode), or is not measured for this row.

"""


class Results:
    """A pytest plugin: collects from the reports of all workers, writes at the end."""

    def __init__(self, path: Path):
        self.path = path
        self.measured: dict[tuple[str, str], float] = {}
        self.sharded: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "measured":
                family, column, number = value
                key = (family, column)
                self.measured[key] = max(self.measured.get(key, 0.0), number)
        found = re.search(r"test_eight_devices_equal_one\[([\w-]+?)-[a-z_]+-\{", report.nodeid)
        if found:
            self.sharded[found[1]] = self.sharded.get(found[1], True) and report.passed

    def row(self, family: str) -> str:
        cells = [self.cell(family, column) for column in COLUMNS]
        model = MODEL_OF.get(family, family.partition("-")[0])
        sharded = {True: "equal", False: "differs"}.get(self.sharded.get(model), "-")
        config = f"configs/{CONFIG_OF.get(model, f'{model}_tiny')}.py"
        config = f"`{config}`" if (ROOT / config).is_file() else "-"
        return f"| {family} | {' | '.join(cells)} | {sharded} | {config} |"

    def cell(self, family: str, column: str) -> str:
        if column == "import":
            return "yes" if (family, "export") in self.measured else "-"
        value = self.measured.get((family, column))
        if value is None:
            return "-"
        return f"{value:.0f}" if column == "export" else f"{value:.1e}"

    def pytest_sessionfinish(self) -> None:
        families = sorted({family for family, _ in self.measured} | (set(MODELS) & set(self.sharded)))
        titles = ["family", *COLUMNS, "8 devices", "tiny config"]
        lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *map(self.row, families)]
        self.path.write_text(HEAD + "\n".join(lines) + "\n")
