"""The end of a run: the objective's products, the report page, and the last lines on the
terminal.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config
from bigmodel_jax.core import files, mirror, params, processes, sharding
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.report.box_grid import write_boxes
from bigmodel_jax.report.mask_grid import write_masks
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training.checks import check_images, check_sample
from bigmodel_jax.training.drawing_ending import Drawings
from bigmodel_jax.training.reconstruction_ending import Reconstructions
from bigmodel_jax.training.saved import find_boxes, generate_images, generate_text, predict_masks
from bigmodel_jax.training.speech_ending import Speech
from bigmodel_jax.training.state import TrainState, weights


class Ending(Protocol):
    """A product of the end of a run, such as sample texts or pictures. See `Objective.endings`."""

    def check(self, config: Config) -> None:
        """Raises a one-line ValueError, before anything is compiled, if it cannot be made."""
        ...

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        """Writes files whose names begin with `path`, a path in samples/ without suffix.

        Returns a text for the terminal, or "". Every process calls it, and only the first process
        writes.
        """
        ...


class Text:
    """The continuation of `eval.sample.prompt`, if there is a prompt and the model can generate."""

    def wanted(self, config: Config) -> bool:
        return bool(config.eval.sample.prompt) and config.make_model().make_cache is not None

    def check(self, config: Config) -> None:
        if self.wanted(config):
            check_sample(config, config.eval.sample, config.data.open_tokenizer(), prefix="eval.sample.")

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        if not self.wanted(config):
            return ""
        # Every process generates, because the weights may be sharded over all of them.
        text = generate_text(config, weights, config.eval.sample, seed=config.train.seed)
        if processes.first():
            files.replace(path.with_suffix(".txt"), text + "\n")
        return f"\nSample: {text}\n"


class Images:
    """The images that `eval.images` asks for, as one picture."""

    def check(self, config: Config) -> None:
        if config.eval.images.num:
            check_images(config, config.eval.images, prefix="eval.images.")

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        if config.eval.images.num:
            from bigmodel_jax.report.picture_grid import write_grid

            images, titles = generate_images(config, weights, seed=config.train.seed)
            if processes.first():
                write_grid(path.with_suffix(".png"), images, titles)
        return ""


class Pictures:
    """Held-out pictures beside the model's predictions, as one picture.

    `predict` is a function (config, weights) -> pictures, ground truth, predictions. `write` draws
    these into a file.
    """

    def __init__(self, predict: Callable, write: Callable):
        self.predict, self.write = predict, write

    def check(self, config: Config) -> None:
        pass  # data with masks or boxes always has pictures

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        if config.objective.pictures:
            found = self.predict(config, weights)
            if processes.first():
                self.write(path.with_suffix(".png"), *found, getattr(config.data, "class_name", str))
        return ""


class Games:
    """Plays games against a fixed player, and draws the boards with the model's value before each
    move.
    """

    def check(self, config: Config) -> None:
        if type(config.data).held_out is DataConfig.held_out:
            raise ValueError(f"data: {type(config.data).__name__} plays no games; give SelfPlayData")

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        from bigmodel_jax.report.board_plots import write_games

        games = config.data.held_out(config, sharding.make_mesh(config.parallel)).shown(weights)
        if processes.first():
            write_games(path.with_suffix(".png"), games)
        return ""


ENDINGS: dict[str, Ending] = {
    "text": Text(),
    "images": Images(),
    "masks": Pictures(predict_masks, write_masks),
    "speech": Speech(),
    "reconstructions": Reconstructions(),
    "drawings": Drawings(),
    "boxes": Pictures(find_boxes, write_boxes),
    "games": Games(),
}


def endings_of(config: Config) -> list[Ending]:
    """The endings of the run's objective. Raises ValueError for an unknown name."""
    found = [ENDINGS.get(one, one) if isinstance(one, str) else one for one in config.objective.endings]
    for one in found:
        if isinstance(one, str):
            known = ", ".join(ENDINGS)
            raise ValueError(f"objective.endings: {one!r} is unknown{nearest(one, ENDINGS)}; known: {known}")
    return found


def check_endings(config: Config) -> None:
    """Raises ValueError if one of the objective's endings cannot be made."""
    for one in endings_of(config):
        one.check(config)


def finish(
    config: Config,
    run_dir: Path,
    state: TrainState,
    constants: params.Tree,
    saves: store.Store,
    stages: Stages,
    *,
    page: bool = True,
) -> None:
    """Makes the endings and the report page of a complete run. Only the first process writes."""
    for one in endings_of(config):
        if said := one.make(config, weights(state, constants), run_dir / "samples" / f"{int(state.step):08d}"):
            stages.say(said)
    if not page:
        return
    stages.begin("Writing the report")
    written = report(run_dir, saves)
    if written:
        stages.say(f"Report: {mirror.address(written)}")


def report(run_dir: Path, saves: store.Store) -> Path | None:
    """Builds the run's page once its checkpoints are on disk; None in all processes but
    the first.
    """
    from bigmodel_jax.report.page import build_report

    store.wait(saves)
    return build_report([run_dir], run_dir / "report.html") if processes.first() else None
