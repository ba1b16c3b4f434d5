"""The images that a run of TextThenImage draws at its end: several per name, ranked by a CLIP."""

from pathlib import Path

import jax
import numpy as np

from bigmodel_jax.checkpoint import kept
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, processes, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.inference.draw_codes import draw_codes, images_of, nearness
from bigmodel_jax.objectives.other_run import model_of
from bigmodel_jax.report.picture_grid import write_grid
from bigmodel_jax.training import run_folder
from bigmodel_jax.training.saved import load_weights

TOLD = ("tokens", "segment_ids")  # the arrays of a text in a batch


class Drawings:
    """Images of `objective.pictures` names of the training split, and of as many held-out names."""

    def check(self, config: Config) -> None:
        if config.objective.judge:
            check_judge(config)

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        if config.objective.pictures:
            told, titles = names_to_draw(config)
            images, scores = drawn(config, weights, told, config.train.seed)
            if processes.first():
                write_grid(path.with_suffix(".png"), best(images, scores), titles)
        return ""


def names_to_draw(config: Config) -> tuple[dict[str, np.ndarray], list[str]]:
    """(texts, titles) of names that lie evenly in the training split, and then of held-out ones."""
    batches, titles = [], []
    for split, mark in (("train", ""), ("validation", "new: ")):
        rows = config.data.open(split)
        chosen = np.linspace(0, len(rows) - 1, min(config.objective.pictures, len(rows))).astype(int)
        batches.append(rows.batch(chosen, None))
        titles += [f"{mark}{rows.texts[n]}" for n in chosen]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in TOLD}, titles


def drawn(
    config: Config, weights: params.Tree, told: dict[str, np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws K candidates for each of N texts: images (N, K, H, W, C) float32 in 0 .. 1, and scores
    (N, K). A score is the judge's similarity of image and text, or 0 without a judge.
    """
    objective, num = config.objective, config.objective.candidates
    # The candidates of one text are neighbours, so the last lines can reshape them to (N, K).
    told = {name: np.repeat(x, num, axis=0) for name, x in told.items()}
    weights, sample = cast(weights, config.precision.compute), config.eval.sample
    codes = draw_codes(config.make_model(), weights, objective, told["tokens"], sample, seed)
    images = images_of(weights, objective, codes)
    scores = np.zeros(len(images), np.float32)
    if objective.judge:
        judge, judges = open_judge(objective.judge)
        scores = nearness(judge.make_model(), judges, images, told)
    return images.reshape(-1, num, *images.shape[1:]), scores.reshape(-1, num)


def best(images: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The candidate with the highest score for each text (N, H, W, C); the first of equal ones."""
    return images[np.arange(len(images)), np.argmax(scores, axis=1)]


# ---------------------------------------------------------------- the judge


def check_judge(config: Config) -> None:
    """Raises a one-line ValueError where `objective.judge` is no CLIP of these images and texts."""
    judge, row = config.objective.judge, config.data.row()
    model, (length,) = model_of(judge, "objective.judge"), row["tokens"].shape
    if not hasattr(model, "vision") or not hasattr(model, "projection_dim"):
        raise ValueError(
            f"objective.judge = {judge!r} is a run of {type(model).__name__}, which is no CLIP; give a run of "
            "configs/clip_emoji.py"
        )
    if tuple(model.vision.image_shape) != tuple(row["image"].shape):
        raise ValueError(
            f"objective.judge = {judge!r} reads images of shape {tuple(model.vision.image_shape)}, and the data's have "
            f"{tuple(row['image'].shape)}"
        )
    if model.text.max_seq_len < length:
        raise ValueError(
            f"objective.judge = {judge!r} reads texts of up to {model.text.max_seq_len} tokens, and the data's have {length} "
            "(data.seq_len)"
        )


def open_judge(source: str) -> tuple[Config, params.Tree]:
    """(config, weights in the compute dtype) of the run that `source` names, on one device."""
    folder, which = kept.split(source)
    config = run_folder.load(folder, runs_code=False)
    mesh = sharding.make_mesh(ParallelConfig(data=1), jax.local_devices()[:1])
    weights, _ = load_weights(config, folder, mesh, which, f"objective.judge = {source!r}")
    return config, cast(weights, config.precision.compute)
