"""Which figures of two runs may be held against each other."""

import dataclasses
from pathlib import Path

import pytest

from bigmodel_jax.data import CsvFiles, DataConfig, Source
from bigmodel_jax.report import declared
from bigmodel_jax.report.comparable import difference
from bigmodel_jax.report.history import Run

TEXT = {
    "objective": {"type": "bigmodel_jax.objectives.language_model:NextToken", "z_loss": 0.0, "logits": "auto"},
    "data": {
        "type": "bigmodel_jax.data.text:TextData",
        "cache_dir": "",
        "source": {"type": "bigmodel_jax.data.sources.sources:TextFiles", "train": "a.txt", "validation": "b.txt"},
        "tokenizer": {"kind": "bpe", "vocab_size": 512},
        "seq_len": 64,
    },
    "train": {"batch_size": 8},
}
LINES = "bigmodel_jax.data.text.text_classification:LabelledLines"
LABELS = {
    "objective": {"type": "bigmodel_jax.objectives.classification:Classification", "label_smoothing": 0.0},
    "data": {
        "type": "bigmodel_jax.data.text.text_classification:TextClassificationData",
        "source": {"type": LINES, "train": "a", "validation": ""},
        "validation_fraction": 0.1,
        "seq_len": 64,
    },
}
MASKED = TEXT | {"data": TEXT["data"] | {"type": "bigmodel_jax.data.text.masking:MaskedTextData", "mask_rate": 0.15}}
SHARDS = {"type": "bigmodel_jax.data.corpus.corpus:Corpus", "shard_mb": 256, "licence": "", "validation_share": 0.0}
CORPUS = TEXT | {"data": TEXT["data"] | {"source": SHARDS | {"source": TEXT["data"]["source"]}}}
BOOKS = {"type": TEXT["data"]["source"]["type"], "train": "a.txt", "validation": ""}
CUT = TEXT | {"data": TEXT["data"] | {"source": SHARDS | {"validation_share": 0.1, "source": BOOKS}}}
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
    compared = declared.compared(config["data"])
    return Run(Path("run"), config, {}, metrics, [], tokenizer=tokenizer, compared=compared)


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
    ("eval/accuracy", MASKED, {"data.mask_rate": 0.3}, "preparation of the data"),
    ("eval/accuracy", TEXT, {"data.a_field_of_later": 0.3}, "held-out data"),
    ("eval/loss", CORPUS, {"data.source.licence": "CC0", "data.source.shard_mb": 1}, ""),
    ("eval/loss", CORPUS, {"data.source.source.train": "d.txt"}, ""),
    ("eval/loss", CORPUS, {"data.source.validation_share": 0.2}, "held-out data"),
    ("eval/loss", CUT, {"data.source.source.train": "d.txt"}, "held-out data"),
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
        LABELS | {"data": LABELS["data"] | {"source": {"type": LINES, "train": "a", "validation": "c"}}},
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
    """A tokenizer learnt from other texts is another one, although its config is the same. A path
    that moved makes no difference."""
    assert difference("eval/loss", [run(TEXT, tokenizer="a"), run(TEXT, tokenizer="b")]) == "tokenizer"
    moved = run(TEXT, {"data.tokenizer.kind": "x"}, tokenizer="a")
    assert difference("eval/loss", [run(TEXT, tokenizer="a"), moved]) == ""


@dataclasses.dataclass(frozen=True)
class Own(DataConfig):
    compared = DataConfig.compared | {"colour": "training"}

    source: Source = CsvFiles(train="a.csv", validation="b.csv")
    colour: float = 0.5


def test_a_class_of_the_users_own_says_it_in_the_run_folder(tmp_path):
    """The class is read at the start of a run, where it can be imported."""
    declared.write(tmp_path, {}, "examples", declared.compared(Own()))
    _, _, compared = declared.read(tmp_path, {"data": {"type": "mine.py:Own", "colour": 0.5}})
    assert compared["colour"] == compared["source.train"] == "training"
    assert "source.validation" not in compared


def test_every_data_class_names_fields_that_it_has():
    known = [*classes(DataConfig), *classes(Source)]
    assert len(known) > 30
    for cls in known:
        fields = {field.name for field in dataclasses.fields(cls)}
        assert cls.compared.keys() <= fields, cls
        assert not cls.cut or cls.cut in fields, cls


def classes(base):
    """The package's subclasses of a class, of theirs as well."""
    own = [cls for cls in base.__subclasses__() if cls.__module__.startswith("bigmodel_jax.")]
    return own + [below for cls in own for below in classes(cls)]
