import dataclasses
import json

import numpy as np
import pytest

from bigmodel_jax.data.holdout import held_out
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.data.tabular import Tables, TabularData, read_split

TABLE = "x,y,size\n" + "".join(f"{i},{i * i % 7},{3 * i + 1}\n" for i in range(20))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "table.csv").write_text(TABLE)
    return TabularData(source=Tables(str(tmp_path / "table.csv")), target=("size",))


def test_training_rows_are_standardised_and_the_rest_by_the_same_numbers(config, tmp_path):
    train, validation = config.open("train"), config.open("validation")
    assert (len(train), len(validation)) == (16, 4)
    every = train.batch(np.arange(16), None)
    for name in ("features", "target"):
        np.testing.assert_allclose(every[name].mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(every[name].std(0), 1, atol=1e-6)
    held = validation.batch(np.arange(4), None)
    table = read_split(config, "validation")
    np.testing.assert_allclose(held["target"] * held["target_scale"] + held["target_mean"], table.targets, rtol=1e-6)
    config.save_artifacts(tmp_path)
    scaling = json.loads((tmp_path / "scaling.json").read_text())["features"]
    assert scaling["names"] == ["x", "y"]
    np.testing.assert_allclose(held["features"] * scaling["scale"] + scaling["mean"], table.features, atol=1e-5)


def test_training_batches_hold_only_what_the_step_needs(config):
    assert set(config.open("train").batch(np.arange(2), np.zeros(2, np.uint64))) == {"features", "target", "weights"}


def test_a_constant_column_becomes_zeros(config, tmp_path):
    (tmp_path / "table.csv").write_text("x,one,size\n" + "".join(f"{i},1,{i}\n" for i in range(10)))
    assert not config.open("train").features[:, 1].any()


def test_the_split_does_not_depend_on_the_order_and_keeps_equal_rows_together(config, tmp_path):
    before = {tuple(row) for row in read_split(config, "validation").features.tolist()}
    header, *rows = TABLE.splitlines()
    (tmp_path / "table.csv").write_text("\n".join([header, *rows[::-1]]))
    assert {tuple(row) for row in read_split(config, "validation").features.tolist()} == before
    contents = [b"a", b"b", b"c"] * 10
    sides = held_out(contents, 0.2)
    assert all(sides[i] == sides[i % 3] for i in range(30))
    assert 0 < sum(sides) < 30
    assert held_out(contents, 0.999).count(False) == 10
    other_seeds = {tuple(held_out([str(i).encode() for i in range(50)], 0.2, seed)) for seed in range(5)}
    assert len(other_seeds) == 5
    assert {sum(sides) for sides in other_seeds} == {10}


def test_a_file_of_its_own_for_validation(config, tmp_path):
    (tmp_path / "other.csv").write_text("x,y,size\n1,2,3\n")
    source = dataclasses.replace(config.source, validation=str(tmp_path / "other.csv"))
    config = dataclasses.replace(config, source=source)
    assert (len(config.open("train")), len(config.open("validation"))) == (20, 1)


def columns():
    return {"train": {"x": np.arange(9), "name": list("abcdefghi"), "size": [2 * i for i in range(9)]}}


def test_any_source_of_named_numbers_feeds_it(tmp_path):
    data = TabularData(source=Arrays(columns), target=("size",), features=("x",), cache_dir=str(tmp_path))
    table = read_split(data, "train")
    assert (table.features * 2 == table.targets).all(), "columns that are not read may be no numbers"
    assert len(table.targets) == 9 - len(read_split(data, "validation").targets) == 8
    with pytest.raises(ValueError, match="record 0: column 'name': 'a' is not a number"):
        read_split(dataclasses.replace(data, features=("x", "name")), "train")


def test_labels(config, tmp_path):
    config = dataclasses.replace(config, target=("y",), num_classes=5)
    assert config.requirements() == {"feature_shape": (2,), "num_outputs": 5}
    batch = config.open("train").batch(np.arange(3), None)
    assert batch["label"].dtype == np.int32
    with pytest.raises(ValueError, match=r"line \d+: label 4 is not in 0 \.\. 2 \(data\.num_classes\)"):
        dataclasses.replace(config, num_classes=3).open("train")


def test_diabetes_is_scikit_learns():
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True, scaled=False)
    tables = [read_split(TabularData(), split) for split in ("train", "validation")]
    assert [len(t.features) for t in tables] == [354, 88]
    ours = {(*x, *y) for t in tables for x, y in zip(t.features.tolist(), t.targets.tolist(), strict=True)}
    assert ours == {(*x, y) for x, y in zip(features.tolist(), target.tolist(), strict=True)}
    assert TabularData().requirements() == {"feature_shape": (10,), "num_outputs": 1}


def test_bad_rows_are_counted_and_named(config, tmp_path, caplog):
    (tmp_path / "table.csv").write_text(TABLE + "1,2\n1,nan,3\n1,two,3\n")
    with pytest.raises(ValueError, match=r"table\.csv line 22: 2 cells, but the header has 3"):
        config.open("train")
    rows = dataclasses.replace(config, max_bad_records=3).open("train")
    assert [where.rpartition("line ")[2] for where, _ in rows.skipped] == ["22", "23", "24"]
    assert "column 'y': 'nan' is not finite" in caplog.text
    assert "column 'y': 'two' is not a number" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": Tables("missing.csv")}, r"data\.source\.train: 'missing\.csv' matches no file"),
        ({"target": ("sise",)}, r"data\.target: .*table\.csv line 2 has no column 'sise' \(perhaps you meant 'size'\)"),
        ({"features": ("z",)}, r"data\.features: .* has no column 'z'"),
        ({"target": ("x", "y", "size")}, r"has no other column to predict it from"),
        ({"target": ()}, r"data\.target = \(\): at least one is needed"),
        ({"num_classes": 1}, r"data\.num_classes = 1; it must be 0 for numbers, or at least 2"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction = 1\.0; it must be above 0 and below 1"),
    ],
)
def test_a_mistake_is_one_line(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes).open("train")
