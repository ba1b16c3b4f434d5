"""Define a sweep: its config, its search space, how it is searched, and its folder."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, flat
from bigmodel_jax.core import trust
from bigmodel_jax.sweep import space as spaces
from bigmodel_jax.sweep import study as studies
from bigmodel_jax.sweep.space import Space

# Fields that may change when a sweep is continued: where it runs and how it is watched.
FREE = ("parallel.", "report.", "data.cache_dir", "train.log_every", "train.max_step_seconds")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What all processes of a sweep know.

    config: the config whose fields are varied. source: its file. space: the searched fields.
    search: metric, sampler and pruner. run_dir: the sweep's folder. storage: "journal" or "sqlite".
    trials: the number of trials that the sweep should reach.
    """

    config: Config
    source: Path
    space: Space
    search: studies.Search
    run_dir: Path
    storage: str
    trials: int

    def open(self) -> optuna.Study:
        """Open or create the study of this sweep."""
        return studies.open_study(self.run_dir, self.storage, self.search, self.definition())

    def definition(self) -> dict[str, str]:
        """{name: text} of everything that distinguishes this sweep from others."""
        # A searched field is left out, because its value in the config is never used.
        fields = {n: repr(v) for n, v in flat(self.config).items() if not n.startswith(FREE) and n not in self.space}
        own = {f"SPACE[{name!r}]": spaces.text(dimension) for name, dimension in self.space.items()}
        how = {f"--{n}": getattr(self.search, n) for n in ("metric", "sampler", "pruner", "seed")}
        return fields | own | {name: str(value) for name, value in how.items()}

    def folder(self, number: int) -> Path:
        """The run folder of trial `number`."""
        return self.run_dir / "trials" / f"{number:04d}"


def to_job(sweep: Sweep) -> dict[str, Any]:
    """A sweep as JSON, for another process of this machine."""
    fields = {"source": str(sweep.source), "run_dir": str(sweep.run_dir), "storage": sweep.storage}
    search = dataclasses.asdict(sweep.search)
    return fields | {"config": config_file.to_json(sweep.config), "search": search, "trials": sweep.trials}


def of_job(job: dict[str, Any]) -> Sweep:
    """The inverse of `to_job`."""
    trust.allow()  # the parent process has already opened this config
    config, source = config_file.from_json(job["config"]), Path(job["source"])
    space = spaces.read(source, config)
    search = studies.Search(**job["search"])
    return Sweep(config, source, space, search, Path(job["run_dir"]), job["storage"], job["trials"])
