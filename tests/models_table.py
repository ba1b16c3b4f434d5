"""Writes docs/models.md from the results of the tests.

uv run --group dev pytest tests/parity tests/contract -m "slow or not slow" --models-table
docs/models.md
"""

import re
from pathlib import Path

from bigmodel_jax.models import MODELS
from bigmodel_jax.pretrained import FAMILIES

ROOT = Path(__file__).parents[1]
COLUMNS = ("forward", "backward", "training", "decode", "import", "export", "reload")
# The reference's name -> the name in MODELS, where it is not the same; what follows a hyphen is a
# head.
MODEL_OF = {
    "llama31": "llama",
    "phi4_mini": "phi3",
    "moonlight": "deepseek",
    "opus_mt": "transformer",
    "t5_v11": "t5",
    "lstm": "rnn",
    "gru": "rnn",
    "resnet_basic": "resnet",
    "vgg_bn": "vgg",
    "autoencoder_plain": "autoencoder",
    "conformer_bare": "conformer",
    "dinov2": "vit",
    "dinov2_registers": "vit",
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
    "unet": "segment_digits",
    "detr": "detect_digits",
    "clip": "clip_emoji",
    "siglip": "siglip_emoji",
    "mmdit": "flow_emoji",  # the same network, with a text tower that is trained along
    "mmdit_text": "flow_emoji",
    "llava": "caption_emoji",
    "pixart": "dit_text_emoji",  # the same network, with a text tower that is trained along
    "text_to_image": "dit_text_emoji",
    "rnn_classifier": "lstm_classifier",
    "rnn": "lstm_text",
    "linear": "linear_regression",
    "bag_of_embeddings": "text_classification",
    "autoencoder": "vae_emoji",
    "discrete_autoencoder": "dvae_emoji",
    "conformer": "speech_words",
    "whisper": "whisper_tiny_en",
    "bart": "transformer_tiny",  # the same layers; its start tokens need data of pairs, which no small source has
}
# Models of this project's own making: nobody published a reference.
NO_REFERENCE = {
    "bag_of_embeddings",
    "cnn",
    "discrete_autoencoder",
    "linear",
    "mlp",
    "mmdit_text",
    "rnn_classifier",
    "text_to_image",
    "unet",
}
PUBLISHED = {family.config for family in FAMILIES.values()}
HEAD = """# Models

The table compares every family with its reference implementation, with the same weights and
inputs, in float32 on a CPU. This command writes the page:

```
uv run --group dev pytest tests/parity tests/contract -m "slow or not slow" --models-table docs/models.md
```

- **forward**: the largest difference of logits and hidden states, with padding and packing.
  **backward**: the largest difference of any parameter's gradient, relative to its norm.
  **training**: the largest difference of the loss over 20 AdamW steps. **decode**: the largest
  difference when decoding with a cache; for pixart and mmdit, that of an image from DDIM and from
  Euler's method with guidance. The bars are 1e-4, 1e-4, 1e-3 and 1e-4, and greedy token ids are
  equal.
- **import**: the weights came through the name table of `launch.py import`. **export**: the
  number of tensors whose bits change from the published format to ours and back. **reload**: the
  largest difference of logits between our model and the library that loads its export:
  transformers, or diffusers for pixart and mmdit. Neither library has dit, efficientnet, alexnet
  and vgg, so their published architecture in torch loads the export. Each family is exported with
  the config of the other columns, and with every choice of its config reversed
  (tests/parity/reload_test.py). The bar is 1e-4. **8 devices**: loss and gradients under FSDP and
  under FSDP x TP equal those of one device.
- A word replaces a figure in these cases. *own*: no reference was published. Tests compare a
  linear model with its closed form (tests/models/linear_test.py), and the layers of the other
  models with Flax's (tests/parity/flax_layers_test.py). text_to_image and mmdit_text combine the
  networks of pixart and mmdit with the text tower of clip; discrete_autoencoder has the networks
  of autoencoder and rounded values (tests/nn/fsq_test.py); rnn_classifier uses the cells of rnn,
  lstm and gru. Each of these parts is compared in its own row. *one pass*: only one family of
  each kind trains for 20 steps; the row has the forward and backward figures. *no cache*: the
  model does not generate token by token. *left out*: decoding does not use these modules, in
  transformers either. *no files*: no published weights have a format of their own. *not
  measured*: the column applies, but no test measures it.
- The fixtures record the versions that made them. With `--reference-python PATH` the same tests
  run the references themselves; all of them passed in this way, too (torch 2.13, transformers
  5.23, diffusers 0.42).
- XLNet runs without memory of earlier segments (`mems`), as its published config.json specifies
  (`mem_len` null).
- LongRoPE (phi3) has two sets of frequencies. transformers selects one by the longest text of a
  batch, and computes a text again where its answer passes the length of pretraining. Here the
  length of a row selects the set, and in decoding that of the cache: prompt and answer together.
- The stack of qwen3_next consists of blocks of four layers: three of Gated DeltaNet and one of
  attention. Stages of a pipeline, `explain`, `report.watch`, `train.stochastic_depth` and the
  layers of distillation count these blocks. Its states cannot be cut back, so the server reuses a
  kept prompt as a whole or not at all.

"""
TAIL = """
## Families that are not here, and why

`launch.py import` refuses each of these families with one line, which names the nearest family of
the table.

| family | what our code lacks for it |
| --- | --- |
| Mamba 2 | the state-space layer, and a decode cache of states instead of keys and values |
| Llama 4 | attention in chunks, norms of queries and keys without scales, and a router that scales the inputs of its experts |
| DeepSeek V3.2 | sparse attention: the indexer that chooses which keys a query sees |
"""


def model_of(family: str) -> str:
    return MODEL_OF.get(family, family.partition("-")[0])


def why_not(family: str, column: str) -> str:
    """Why a cell holds no figure, in the words that HEAD explains."""
    model = model_of(family)
    if family.endswith("-mtp") and column in ("decode", "reload"):
        return "left out"
    if column in ("import", "export", "reload"):
        return "not measured" if MODELS[model] in PUBLISHED else "no files"
    if column == "decode":
        return "not measured" if MODELS[model].tiny().make().make_cache else "no cache"
    if model in NO_REFERENCE:
        return "own"
    return "one pass" if column == "training" else "not measured"


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
        model = model_of(family)
        sharded = self.sharded.get(family, self.sharded.get(model))  # a form of a model may have a grid of its own
        sharded = {True: "equal", False: "differs"}.get(sharded, "not measured")
        config = f"configs/{CONFIG_OF.get(model, f'{model}_tiny')}.py"
        config = f"`{config}`" if (ROOT / config).is_file() else "none"
        return f"| {family} | {' | '.join(cells)} | {sharded} | {config} |"

    def cell(self, family: str, column: str) -> str:
        if column == "import" and (family, "export") in self.measured:
            return "yes"
        value = self.measured.get((family, column))
        if value is None:
            return why_not(family, column)
        return f"{value:.0f}" if column == "export" else f"{value:.1e}"

    def pytest_sessionfinish(self) -> None:
        known = {family for family, _ in self.measured if model_of(family) in MODELS}  # objectives are measured as well
        families = sorted(known | (set(MODELS) & set(self.sharded)))
        titles = ["family", *COLUMNS, "8 devices", "tiny config"]
        lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *map(self.row, families)]
        self.path.write_text(HEAD + "\n".join(lines) + "\n" + TAIL)
