"""Where a run ends: samples of its own, the report page, and the last lines on the terminal."""

from pathlib import Path

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config
from bigmodel_jax.core import files, processes
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training.checks import samples_images, samples_text
from bigmodel_jax.training.saved import generate_images, generate_text
from bigmodel_jax.training.state import TrainState, weights


def finish(config: Config, run_dir: Path, state: TrainState, saves: store.Store, stages: Stages) -> None:
    """What a complete run leaves beside its checkpoints; of several processes, the first one alone writes."""
    name = f"{int(state.step):08d}"
    if samples_text(config):
        text = generate_text(config, weights(state), config.eval.sample, seed=config.train.seed)
        if processes.first():
            files.replace(run_dir / "samples" / f"{name}.txt", text + "\n")
        stages.say(f"\nSample: {text}\n")
    if samples_images(config):
        from bigmodel_jax.report.picture_grid import write_grid

        images, titles = generate_images(config, weights(state), seed=config.train.seed)
        if processes.first():
            write_grid(run_dir / "samples" / f"{name}.png", images, titles)
    stages.begin("Writing the report")
    page = report(run_dir, saves)
    if page:
        stages.say(f"Report: {page}")


def report(run_dir: Path, saves: store.Store) -> Path | None:
    """The run's page, once its checkpoints are on disk; None in every process but the first."""
    from bigmodel_jax.report.page import build_report

    store.wait(saves)
    return build_report([run_dir], run_dir / "report.html") if processes.first() else None
