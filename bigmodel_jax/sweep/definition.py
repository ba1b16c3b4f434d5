"""What a sweep is: a config, the space of its fields, how it is searched, and where it lies."""

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

# Where it runs and how it is watched may differ when a sweep goes on.
FREE = ("parallel.", "report.", "data.cache_dir", "train.log_every", "train.max_step_seconds")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What all processes of a sweep know. source: the config file; trials: how many there are to be."""

    config: Config
    source: Path
    space: Space
    search: studies.Search
    run_dir: Path
    storage: str
    trials: int

    def open(self) -> optuna.Study:
        return studies.open_study(self.run_dir, self.storage, self.search, self.definition())

    def definition(self) -> dict[str, str]:
        """What makes it this sweep and no other."""
        fields = {n: repr(v) for n, v in flat(self.config).items() if not n.startswith(FREE) and n not in self.space}
        own = {f"SPACE[{name!r}]": spaces.text(dimension) for name, dimension in self.space.items()}
        how = {f"--{n}": getattr(self.search, n) for n in ("metric", "sampler", "pruner", "seed")}
        return fields | own | {name: str(value) for name, value in how.items()}

    def folder(self, number: int) -> Path:
        return self.run_dir / "trials" / f"{number:04d}"


def to_job(sweep: Sweep) -> dict[str, Any]:
    """A sweep as JSON, for another process of this machine."""
    fields = {"source": str(sweep.source), "run_dir": str(sweep.run_dir), "storage": sweep.storage}
    search = dataclasses.asdict(sweep.search)
    return fields | {"config": config_file.to_json(sweep.config), "search": search, "trials": sweep.trials}


def of_job(job: dict[str, Any]) -> Sweep:
    """The inverse of `to_job`."""
    trust.allow()  # the process that asks has opened this config already
    config, source = config_file.from_json(job["config"]), Path(job["source"])
    space = spaces.read(source, config)
    search = studies.Search(**job["search"])
    return Sweep(config, source, space, search, Path(job["run_dir"]), job["storage"], job["trials"])
