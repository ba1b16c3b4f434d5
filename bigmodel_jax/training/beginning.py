"""Where a run begins: its data, and its state, fresh, from another run's weights or from its own newest checkpoint."""

from pathlib import Path

from rich.console import Console

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config
from bigmodel_jax.core import processes
from bigmodel_jax.data.loader import BatchIterator, EvalBatches, eval_batches, make_iterator
from bigmodel_jax.training.saved import fresh_state
from bigmodel_jax.training.state import TrainState, abstract_state


def open_data(config: Config, mesh) -> tuple[BatchIterator, EvalBatches]:
    """(training batches, validation batches), prepared where they are not yet."""
    layout = {"mesh": mesh, "rules": config.parallel.rules}
    batches = make_iterator(config.data, batch_size=config.train.batch_size, seed=config.train.seed, **layout)
    size = config.eval.batch_size or config.train.batch_size
    return batches, eval_batches(config.data, batch_size=size, **layout)


def resume(config: Config, mesh, saves: store.Store, batches: BatchIterator) -> TrainState:
    """The newest good checkpoint on this mesh; `batches` continues after the last batch it has seen."""
    restored = store.restore(saves, abstract_state(config, mesh))
    batches.set_state(restored.data_state)
    return restored.state


def begin(config: Config, mesh, console: Console) -> TrainState:
    """The state at step 0: initial values, or the weights of `train.init_from`."""
    state, missing = fresh_state(config, mesh)
    if config.train.init_from:
        new = f"; new here: {', '.join(missing)}" if missing else ""
        console.print(f"Starting from the weights of {config.train.init_from}{new}.", soft_wrap=True)
    return state


def already_complete(run_dir: Path, config: Config, console: Console) -> dict[str, float]:
    console.print(f"{run_dir} is complete: {config.train.steps:,} of {config.train.steps:,} steps are done.")
    page = run_dir / "report.html"
    if processes.first() and not page.is_file():  # killed between the last save and the page
        from bigmodel_jax.report.page import build_report

        build_report([run_dir], page)
    console.print(f"Report: {page}. To train on, raise --train.steps.")
    return {}
