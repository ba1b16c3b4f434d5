"""Mixtures: shares, the order within each source, changes at a step, resuming by one number, and
what parts must share."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, flat, override
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.data import (
    Arrays,
    CsvFiles,
    ImageData,
    MixtureData,
    Stage,
    TextData,
    TextFiles,
    TokenizerConfig,
    eval_batches,
    make_iterator,
)
from bigmodel_jax.data.inspect import describe
from bigmodel_jax.data.mixture_order import SLOTS, Mixture
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.verbs import preparing

STAGES = (Stage(0, (0.7, 0.2, 0.1)), Stage(500, (0, 1, 1)), Stage(70_000, (5, 2, 1)))


def test_each_source_has_its_share_and_its_own_order_through_all_stages():
    mixture = Mixture(STAGES, batch_size=4)
    source, nth = mixture.draw(np.arange(400_000))
    for i in range(3):
        assert (nth[source == i] == np.arange(np.sum(source == i))).all(), "the next of its own examples, none twice"
    for (low, high), stage in zip([(0, 2000), (2000, 280_000), (280_000, 400_000)], STAGES, strict=True):
        for size in (10, 100, 2000):
            for begin in (low, low + (high - low - size) // 2, high - size):
                share = np.bincount(source[begin : begin + size], minlength=3) / size
                wanted = np.array(stage.weights) / sum(stage.weights)
                assert np.abs(share - wanted).max() <= 3 / size + 1 / SLOTS


def test_any_example_is_drawn_without_those_before_it():
    mixture = Mixture(STAGES, batch_size=4)
    far = np.array([5, 10**15, 3, 10**15 + 1, 2000])
    source, nth = mixture.draw(far)
    for k in range(len(far)):
        assert (source[k], nth[k]) == tuple(int(x[0]) for x in mixture.draw(far[k : k + 1]))
    assert nth[1] == pytest.approx(10**15 * {0: 5 / 8, 1: 2 / 8, 2: 1 / 8}[source[1]], rel=1e-6)


def dark():
    return {split: {"image": np.arange(n)[:, None], "label": [0] * n} for split, n in (("train", 7), ("validation", 3))}


def light():
    return {
        split: {"image": 100 + np.arange(n)[:, None], "label": [1] * n}
        for split, n in (("train", 5), ("validation", 2))
    }


def mixed(tmp_path, stages=(Stage(0, (3, 1)), Stage(6, (1, 1)))):
    parts = tuple(ImageData(source=Arrays(f), num_classes=2) for f in (dark, light))
    return MixtureData(parts=parts, stages=stages, cache_dir=str(tmp_path))


def numbers(data, first, count, devices=1, split="train"):
    mesh = sharding.make_mesh(ParallelConfig(data=devices), jax.devices()[:devices])
    batches = make_iterator(data, batch_size=4, seed=3, mesh=mesh, split=split)
    batches.seek(first)
    return [np.asarray(next(batches)["image"])[:, 0].astype(int).tolist() for _ in range(count)]


def test_a_resumed_run_sees_the_batches_of_one_that_was_never_stopped_on_other_devices_too(tmp_path):
    whole = numbers(mixed(tmp_path), 0, 12)
    assert numbers(mixed(tmp_path), 5, 7) == whole[5:]
    assert numbers(mixed(tmp_path), 5, 7, devices=2) == whole[5:]
    seen = np.ravel(whole).tolist()
    for low, size in ((0, 7), (100, 5)):
        own = [x for x in seen if low <= x < low + 50]
        passes = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(p) == list(range(low, low + size)) for p in passes), "each of its rows once per pass"
        assert passes[0] != passes[1], "in another order"
    early, late = (np.ravel(w) >= 100 for w in (whole[:6], whole[6:]))
    assert (early.sum(), late.sum()) == (6, 12)


def test_weights_leave_evaluation_as_it_is(tmp_path):
    for stages in ((Stage(0, (3, 1)),), (Stage(0, (0, 1)),)):
        mesh = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
        batches = list(eval_batches(mixed(tmp_path, stages), batch_size=4, mesh=mesh, rules=Rules()))
        kept = [x for b in batches for x, w in zip(b["image"][:, 0], b["weights"], strict=True) if w]
        assert [int(x) for x in kept] == [0, 1, 2, 100, 101]


def test_a_mixture_is_found_again_from_config_json_and_its_parts_are_options(tmp_path):
    config = Config(MLPConfig(), Classification(), mixed(tmp_path))
    config_file.save(config, tmp_path / "config.json")
    assert config_file.load(tmp_path / "config.json", runs_code=False) == config
    changed = override(config, ["--data.stages.1.weights", "1", "4", "--data.parts.0.max_shift", "2"])
    assert changed.data.stages[1].weights == (1.0, 4.0)
    before, after = flat(config), flat(changed)
    assert {k for k in after if after[k] != before[k]} == {"data.stages.1.weights", "data.parts.0.max_shift"}
    assert sorted(config.data.reads()) == [
        f"data.parts.{i}.source.{split}" for i in (0, 1) for split in ("train", "validation")
    ]
    assert config.data.requirements() == {"num_classes": 2, "image_shape": (1,)}


def test_the_config_of_an_earlier_version_opens(tmp_path):
    node = config_file.to_json(config := Config(MLPConfig(), Classification(), mixed(tmp_path)))
    for field in ("names", "max_epochs"):
        del node["data"][field]
    for stage in node["data"]["stages"]:
        del stage["temperature"]
        stage["type"] = "bigmodel_jax.data.mixture:Stage"
    assert config_file.from_json(node) == config


def test_shares_by_size_come_from_the_rows_of_training(tmp_path):
    rows = mixed(tmp_path, (Stage(0, temperature=2),)).open("train")
    assert rows.mixture(4).legs[0].weights == (1, round((5 / 7) ** 0.5, 9))
    rows.sizes = (10**12, 1)
    rows._mixtures.clear()
    with pytest.raises(
        ValueError, match=r"^data\.stages\.0\.temperature = 2: the smallest part's share is less than 1/65536"
    ):
        rows.num_examples(4)


def test_the_data_verb_counts_the_rows_of_each_part(tmp_path):
    named = dataclasses.replace(mixed(tmp_path), names=("dark", "light"))
    assert describe(named)["validation"] == {"rows": 5, "rows of dark": 3, "rows of light": 2}


def wide():
    return {split: {"image": np.zeros((2, 2)), "label": [0, 0]} for split in ("train", "validation")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ()}, r"data\.parts: 0 are given; a mixture has two or more"),
        ({"stages": (Stage(1, (1, 1)),)}, r"data\.stages: steps \[1\]; they must begin with 0 and rise"),
        ({"stages": (Stage(0, (1, 1)), Stage(0, (1, 2)))}, r"data\.stages: steps \[0, 0\]"),
        ({"stages": (Stage(0, (1,)),)}, r"data\.stages\.0\.weights = \(1,\); it must have 2 numbers"),
        ({"stages": (Stage(0, (0, 0)),)}, r"data\.stages\.0\.weights = \(0, 0\); .* not all 0"),
        ({"stages": (Stage(0, (1, math.inf)),)}, r"data\.stages\.0\.weights = inf; it must be a finite number"),
        ({"stages": (Stage(0, (1, 1e-6)),)}, r"data\.stages\.0\.weights: 1e-06 is less than 1/65536 of all"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(mixed(tmp_path), **changes)


def test_parts_whose_rows_differ_are_refused_by_the_array(tmp_path):
    data = mixed(tmp_path)
    other = dataclasses.replace(data, parts=(data.parts[0], dataclasses.replace(data.parts[1], source=Arrays(wide))))
    with pytest.raises(
        ValueError, match=r"data\.parts\.1: its rows have 'image' as float32 \(2,\), .* as float32 \(1,\)"
    ):
        other.open("train")
    gone = ImageData(source=CsvFiles("gone.csv"))
    with pytest.raises(ValueError, match=r"data\.parts\.1: data\.source\.train: 'gone\.csv' matches no file"):
        dataclasses.replace(data, parts=(data.parts[0], gone)).open("train")
    with pytest.raises(
        ValueError, match=r"data\.parts\.1 needs model\.image_shape = \(2,\); the parts before it need \(1,\)"
    ):
        other.requirements()


def test_texts_of_two_tokenizers_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("one two three " * 20)
    (tmp_path / "b.txt").write_text("four five six " * 20)
    parts = [
        TextData(source=TextFiles(str(f), str(f)), seq_len=8, tokenizer=TokenizerConfig(vocab_size=270))
        for f in (tmp_path / "a.txt", tmp_path / "b.txt")
    ]
    data = MixtureData(parts=tuple(parts), stages=(Stage(0, (1, 1)),), cache_dir=str(tmp_path / "cache"))
    for use in (lambda: data.open("train"), lambda: preparing._tokenize(data, 1)):
        with pytest.raises(ValueError, match=r"data\.parts\.1: its tokenizer is not that of data\.parts\.0"):
            use()
    same = tuple(dataclasses.replace(part, tokenizer=TokenizerConfig("bytes")) for part in parts)
    rows = dataclasses.replace(data, parts=same).open("validation")
    first, second = rows.batch(np.array([0, rows.offsets[1]]), None)["targets"]
    assert [bytes(t - 1 for t in row[:4]) for row in (first.tolist(), second.tolist())] == [b"one ", b"four"]
