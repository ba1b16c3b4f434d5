"""Which figures of two runs may be held against each other."""

from pathlib import Path

import pytest

from bigmodel_jax.report.comparable import difference
from bigmodel_jax.report.history import Run

TEXT = {
    "objective": {"type": "bigmodel_jax.objectives.language_model:NextToken", "z_loss": 0.0, "logits": "auto"},
    "data": {
        "type": "bigmodel_jax.data.text:TextData",
        "cache_dir": "",
        "source": {"type": "x:TextFiles", "train": "a.txt", "validation": "b.txt"},
        "tokenizer": {"kind": "bpe", "vocab_size": 512},
        "seq_len": 64,
    },
    "train": {"batch_size": 8},
}
LABELS = {
    "objective": {"type": "bigmodel_jax.objectives.classification:Classification", "label_smoothing": 0.0},
    "data": {
        "type": "bigmodel_jax.data.text.text_classification:TextClassificationData",
        "source": {"train": "a", "validation": ""},
        "validation_fraction": 0.1,
        "seq_len": 64,
    },
}
OWN = {"objective": TEXT["objective"], "data": {"type": "my.py:Rows", "file": "a", "noise": 0.1}}
METRICS = {"NextToken": [], "Classification": [{"step": 1, "eval/confusion": [[1]]}]}


def run(config, changes=None, tokenizer=""):
    """`config` with the fields of dotted names replaced."""
    config = {part: dict(fields) for part, fields in config.items()}
    for name, value in (changes or {}).items():
        part, _, field = name.partition(".")
        node = config[part]
        *parents, last = field.split(".")
        for parent in parents:
            node[parent] = dict(node[parent])
            node = node[parent]
        node[last] = value
    metrics = METRICS[config["objective"]["type"].rpartition(":")[2]]
    return Run(Path("run"), config, {}, metrics, [], tokenizer=tokenizer)


ALIKE = {"data.cache_dir": "/c", "data.seq_len": 32, "data.source.train": "c.txt", "objective.logits": "blocks"}
CASES = [
    ("eval/loss", TEXT, ALIKE, ""),
    ("eval/accuracy", TEXT, ALIKE, ""),
    ("train_loss", TEXT, {"data.source.train": "c.txt"}, "training data"),
    ("eval/loss", TEXT, {"data.tokenizer.kind": "bytes"}, "tokenizer"),
    ("eval/perplexity", TEXT, {"data.tokenizer.vocab_size": 99}, "tokenizer"),
    ("tokens_per_second", TEXT, {"data.tokenizer.kind": "bytes"}, "tokenizer"),
    ("eval/bits_per_byte", TEXT, {"data.tokenizer.kind": "bytes"}, ""),
    ("eval/bits_per_byte", TEXT, {"data.source.validation": "c.txt"}, "held-out text"),
    ("eval/loss", TEXT, {"data.source.validation": "c.txt"}, "held-out data"),
    ("eval/loss", TEXT, {"objective.z_loss": 1.0}, "objective"),
    ("eval/accuracy", TEXT, {"objective.z_loss": 1.0}, ""),
    ("eval/accuracy", TEXT, {"data.mask_fraction": 0.3}, "preparation of the data"),
    ("step_seconds", TEXT, {"train.batch_size": 4}, "batch"),
    ("mfu", TEXT, {"train.batch_size": 4, "data.source.validation": "c.txt"}, ""),
    (
        "eval/accuracy",
        LABELS,
        {"data.type": "bigmodel_jax.data.text.subword_classification:SubwordClassificationData"},
        "",
    ),
    ("eval/accuracy", LABELS, {"data.source.train": "b"}, "held-out data"),
    (
        "eval/accuracy",
        LABELS | {"data": LABELS["data"] | {"source": {"train": "a", "validation": "c"}}},
        {"data.source.train": "b"},
        "",
    ),
    ("eval/loss", OWN, {"data.noise": 0.2}, "held-out data"),
]


@pytest.mark.parametrize(("key", "config", "changes", "why"), CASES)
def test_what_makes_a_figure_incomparable(key, config, changes, why):
    assert difference(key, [run(config), run(config, changes)]) == why


def test_another_task_is_no_rival():
    both = [run(TEXT), run(LABELS)]
    assert difference("eval/accuracy", both) == difference("eval/loss", both) == "task"
    assert difference("tokens_per_second", both) == "unit"


def test_the_tokenizer_of_the_folder_decides():
    """Learnt from other texts it is another one, though its config is the same; a path that moved makes no other one."""
    assert difference("eval/loss", [run(TEXT, tokenizer="a"), run(TEXT, tokenizer="b")]) == "tokenizer"
    moved = run(TEXT, {"data.tokenizer.kind": "x"}, tokenizer="a")
    assert difference("eval/loss", [run(TEXT, tokenizer="a"), moved]) == ""
