"""The model of another run that an objective keeps beside its own."""

import json

from bigmodel_jax.core import formats, mirror
from bigmodel_jax.core.dataclass_json import from_json
from bigmodel_jax.models import ModelConfig


def model_of(run: str, name: str, model: ModelConfig | None = None) -> ModelConfig:
    """The model of the run that the config's field `name` gives as FOLDER, FOLDER@STEP or
    FOLDER@best.

    model: the run's model, if the config has it; then the folder is not read. Raises a one-line
    ValueError where no run is given, the folder is not a run's, or the run has adapters.
    """
    if not run:
        raise ValueError(f"{name} = '': give the folder of a run")
    if model is not None:
        return model
    path = mirror.fetched(run) / "config.json"
    if not path.parent.is_dir():  # `run` is FOLDER@STEP or FOLDER@best
        path = mirror.fetched(run.rpartition("@")[0]) / "config.json"
    no_run = f"{name} = {run!r} is not a run's folder; `import` makes one of published weights"
    try:
        node = json.loads(path.read_bytes())
        node = formats.opened(node, path) if isinstance(node, dict) else {}
        config = from_json(node["model"], path.parent)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise ValueError(no_run) from error
    except ValueError as error:
        raise ValueError(f"{name} = {run!r}: {error}") from error
    if not isinstance(config, ModelConfig):
        raise ValueError(no_run)
    if set(node.get("adapters") or {}) - {"type"}:
        raise ValueError(f"{name} = {run!r} has adapters; merge them into its base first")
    return config
