"""Rows are what they declare, and a declaration decides the layout; one that is wrong or missing is
told in a line."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core.sharding import ParallelConfig, make_mesh
from bigmodel_jax.data import (
    DataConfig,
    Field,
    ImageData,
    MaskedTextData,
    PermutedTextData,
    SentencePairData,
    SpanCorruptionData,
    TextData,
    TextFiles,
    Tfds,
    TokenizerConfig,
    eval_batches,
    fields,
    make_iterator,
)
from bigmodel_jax.data.tabular import TabularData
from bigmodel_jax.data.text.text_classification import LabelledLines, TextClassificationData

TEXT = "the quick brown fox jumps. over the lazy dog. " * 20
TEXTS = (TextData, MaskedTextData, PermutedTextData, SpanCorruptionData, SentencePairData)


def shipped(kind: type, folder) -> DataConfig:
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(TEXT)
    (folder / "labels.txt").write_text("".join(f"word{i} good\t{'ab'[i % 2]}\n" for i in range(40)))
    if issubclass(kind, TextData):
        source = TextFiles(train=str(folder / "*[ab].txt"), validation=str(folder / "*[ab].txt"))
        return kind(source=source, tokenizer=TokenizerConfig("bytes"), seq_len=32, cache_dir=str(folder / "cache"))
    if kind is TextClassificationData:
        return kind(source=LabelledLines(train=str(folder / "labels.txt")), max_chars=3, seq_len=4)
    return kind()


@pytest.mark.parametrize("kind", [*TEXTS, TextClassificationData, TabularData], ids=lambda kind: kind.__name__)
def test_rows_are_what_they_declare(kind, tmp_path):
    data = shipped(kind, tmp_path)
    row = data.row()
    training = data.open("train").batch(np.arange(2), np.arange(2, dtype=np.uint64))
    evaluation = data.open("validation").batch(np.arange(2), None)
    assert training.keys() == fields.in_training(row).keys()
    assert evaluation.keys() <= row.keys()
    for batch in (training, evaluation):
        fields.check(row, batch)
    whole = fields.complete(data, {})
    assert {name: (field.shape, field.dtype) for name, field in whole.items()} == {
        name: (x.shape[1:], x.dtype.name) for name, x in training.items()
    }


def test_a_shape_that_the_data_leaves_open_is_the_models():
    """The data source does not exist, so the test shows that no data is read."""
    row = fields.complete(ImageData(source=Tfds("no_such_set")), {"image": (8, 8, 3), "timestep": ()})
    assert {name: field.shape for name, field in row.items()} == {"image": (8, 8, 3), "label": (), "weights": ()}


@dataclasses.dataclass(frozen=True)
class Pairs(DataConfig):
    """What is preferred and what is not, one row; `wrong`: what its rows hold otherwise than
    declared."""

    seq_len: int = 8
    wrong: str = ""

    def open(self, split):
        return PairRows(self)

    def row(self):
        texts = {name: Field((2, self.seq_len), "int32", (None, "seq")) for name in ("tokens", "targets")}
        return texts | {"weights": Field((2, self.seq_len), "float32", (None, "seq"))}


@dataclasses.dataclass(frozen=True)
class PairRows:
    cfg: Pairs

    def __len__(self):
        return 16

    def batch(self, indices, noise):
        tokens = np.asarray(indices, np.int32)[:, None, None] * 100 + np.arange(2 * self.cfg.seq_len).reshape(1, 2, -1)
        tokens = tokens.astype(np.int32)
        batch = {"tokens": tokens, "targets": tokens + 1, "weights": np.ones(tokens.shape, np.float32)}
        if self.cfg.wrong == "missing":
            del batch["targets"]
        if self.cfg.wrong == "shape":
            batch["targets"] = batch["targets"][:, 0]
        if self.cfg.wrong == "type":
            batch["targets"] = batch["targets"].astype(np.float32)
        return batch


class Undeclared(Pairs):
    def row(self):
        return {}


def first(cfg: DataConfig, **axes):
    parallel = ParallelConfig(**axes)
    mesh = make_mesh(parallel, jax.devices()[: np.prod([n for n in parallel.sizes() if n > 0])])
    return next(make_iterator(cfg, batch_size=8, seed=0, mesh=mesh))


def test_a_pair_is_cut_by_rows_and_along_the_sequence():
    whole = first(Pairs(), data=1)
    for axes, shard in (
        ({"data": 4}, (2, 2, 8)),
        ({"data": 2, "fsdp": 2}, (2, 2, 8)),
        ({"data": 2, "seq": 4}, (4, 2, 2)),
    ):
        batch = first(Pairs(), **axes)
        assert {x.sharding.shard_shape(x.shape) for x in batch.values()} == {shard}
        jax.tree.map(np.testing.assert_array_equal, batch, whole)


def test_what_is_not_declared_lies_whole_beside_its_rows():
    batch = first(Undeclared(), data=2, seq=4)
    assert {x.sharding.shard_shape(x.shape) for x in batch.values()} == {(4, 2, 8)}
    jax.tree.map(np.testing.assert_array_equal, batch, first(Pairs(), data=1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("missing", r"row\(\) declares 'targets', which the rows do not hold \(tokens, weights\)"),
        ("shape", r"row\(\) declares 'targets' as \(2, 8\) int32, but the rows hold \(8,\) int32"),
        ("type", r"row\(\) declares 'targets' as \(2, 8\) int32, but the rows hold \(2, 8\) float32"),
    ],
)
def test_rows_that_are_not_what_they_declare_are_told(wrong, says):
    with pytest.raises(ValueError, match=says):
        first(Pairs(wrong=wrong), data=1)


def test_an_evaluation_fills_up_with_weight_0_and_says_where_there_is_none():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    last = list(eval_batches(Pairs(), batch_size=12, mesh=mesh))[-1]
    assert np.asarray(last["weights"]).sum(axis=(1, 2)).tolist() == [16] * 4 + [0] * 8

    class Unweighted(Undeclared):
        def open(self, split):
            rows = super().open(split)
            return type(
                "Rows", (), {"__len__": lambda _: 16, "batch": lambda _, i, n: {"x": rows.batch(i, n)["tokens"]}}
            )()

    with pytest.raises(
        ValueError, match=r"the rows hold no 'weights' \(x\); add \"weights\", float32, .* Field\(\(\)\)"
    ):
        list(eval_batches(Unweighted(), batch_size=12, mesh=mesh))


def test_axes_name_each_dimension_or_none():
    with pytest.raises(ValueError, match=r"Field\(shape=\(2, 8\), axes=\('seq',\)\): axes must name each dimension"):
        Field((2, 8), "int32", ("seq",))
