"""Mixup and CutMix: pixels and labels in the same shares, the same batch on any number of
processes, training alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from bigmodel_jax import config_reads
from bigmodel_jax.data import Arrays, ImageData, MixtureData, Stage
from bigmodel_jax.data.images.mix import CutMix, Mixup, mixed
from bigmodel_jax.data.loader import EvalBatches, Sampler
from bigmodel_jax.models import DiTConfig, MLPConfig
from bigmodel_jax.objectives import Classification, Diffusion

SIZE = 8


def make_arrays():
    """Class k is a picture of value 50 (k + 1)."""
    labels = np.arange(30) % 4
    images = np.broadcast_to((50 * (labels + 1)).astype(np.uint8)[:, None, None, None], (30, SIZE, SIZE, 1))
    return {split: {"image": images, "label": labels} for split in ("train", "validation")}


def config(tmp_path, *mixes, **more):
    source = Arrays(f"{__name__}:make_arrays")
    return ImageData(source=source, num_classes=4, cache_dir=str(tmp_path), mix=mixes, **more)


def shown_and_said(batch):
    """The mean of each image, and what its labels' shares make of the classes' values."""
    return batch["image"].mean(axis=(1, 2, 3)), batch["soft_label"] @ (50 * np.arange(1, 5) / 255)


@pytest.mark.parametrize("mix", [Mixup(alpha=1.0), CutMix()], ids=["mixup", "cutmix"])
def test_labels_have_the_shares_of_the_pixels(mix, tmp_path):
    batch = Sampler(config(tmp_path, mix).open("train"), 30, 0).local(0)
    pixels, labels = shown_and_said(batch)
    np.testing.assert_allclose(pixels, labels, atol=1e-6)
    np.testing.assert_allclose(batch["soft_label"].sum(axis=1), 1, atol=1e-6)
    shares = batch["soft_label"].max(axis=1)
    assert (shares < 0.99).sum() > 10
    np.testing.assert_array_equal(batch["label"], batch["soft_label"].argmax(axis=1))
    assert batch["weights"].tolist() == [1] * 30


def test_cutmix_puts_in_one_rectangle(tmp_path):
    batch = Sampler(config(tmp_path, CutMix()).open("train"), 30, 0).local(0)
    for image in batch["image"][..., 0]:
        values, counts = np.unique(image, return_counts=True)
        assert len(values) <= 2
        inside = image == values[counts.argmin()]
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        outside = ~inside if len(values) == 2 else inside
        edges = np.flatnonzero(outside.any(axis=1)), np.flatnonzero(outside.any(axis=0))
        assert inside.sum() == len(rows) * len(columns) or outside.sum() == len(edges[0]) * len(edges[1])


def test_mixup_is_the_weighted_mean_with_beta_shares():
    images = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1))] * 500).astype(np.float32)
    soft = np.tile(np.eye(2, dtype=np.float32), (500, 1))
    batch = {"image": images, "soft_label": soft, "label": np.tile([0, 1], 500)}
    noise = np.random.default_rng(0).integers(0, 1 << 63, 1000).astype(np.uint64)
    got = mixed((Mixup(alpha=0.4),), batch, noise)
    np.testing.assert_allclose(got["image"][:, 0, 0, 0], got["soft_label"][:, 1], atol=1e-6)
    own = np.where(np.arange(1000) % 2, got["soft_label"][:, 1], got["soft_label"][:, 0])
    np.testing.assert_allclose([own.mean(), own.var()], [0.5, 0.25 / 1.8], atol=0.03)
    assert images.max() == 1
    assert soft[0].tolist() == [1, 0], "what is mixed stays as it was"


def test_the_share_says_how_many_are_mixed(tmp_path):
    batch = Sampler(config(tmp_path, Mixup(share=0.0)).open("train"), 30, 0).local(0)
    assert set(np.unique(batch["soft_label"])) == {0, 1}
    np.testing.assert_allclose(*shown_and_said(batch), atol=1e-6)


@pytest.mark.parametrize("size", [8, 7])
def test_a_batch_is_the_same_on_any_number_of_processes(size, tmp_path):
    rows = config(tmp_path, Mixup(), CutMix(), max_shift=1).open("train")
    for number in (0, 1, 6):  # batch 6 of 7 or 8 is in two epochs
        whole = Sampler(rows, size, 5).local(number)
        for cuts in ([0, 3, size], [0, 1, 2, 5, size]):
            parts = [Sampler(rows, size, 5).local(number, *cut) for cut in itertools.pairwise(cuts)]
            for name, x in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), x)


def test_evaluation_sees_no_mixed_image(tmp_path):
    plain, mixing = (config(tmp_path, *mixes).open("validation") for mixes in ((), (Mixup(),)))
    one, other = (rows.batch(np.arange(30), None) for rows in (plain, mixing))
    assert one.keys() == other.keys() == {"image", "label", "weights"}
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert "soft_label" not in EvalBatches.local(_eval(mixing), 0, 0, 4)


def _eval(rows):
    found = object.__new__(EvalBatches)
    found.rows, found.batch_size = rows, 4
    return found


def test_what_cannot_be_mixed_is_one_line(tmp_path):
    data = config(tmp_path, Mixup())
    config_reads.check(MLPConfig(), Classification(), data)
    says = "ImageData's training batches hold 'soft_label', which Diffusion does not take; allowed: Classification"
    with pytest.raises(ValueError, match=says):
        config_reads.check(DiTConfig(), Diffusion(), data)
    mixture = MixtureData(parts=(data, data), stages=(Stage(0, (1.0, 1.0)),))
    with pytest.raises(ValueError, match=r"data\.parts\.0: data\.mix: the examples of a mixture's parts are not mixed"):
        mixture.open("train")


def make_features():
    return {"train": {"features": np.ones((4, 3), np.float32), "label": np.zeros(4, int)}}


def test_rows_of_numbers_are_not_mixed(tmp_path):
    data = dataclasses.replace(config(tmp_path, Mixup()), source=Arrays(f"{__name__}:make_features"))
    with pytest.raises(ValueError, match=r"data\.mix: .* needs images, but records have shape \(3,\)"):
        data.open("train")
