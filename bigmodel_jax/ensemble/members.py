"""The members of an ensemble, which are checkpoints of runs, and the checks that they fit
together."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

from bigmodel_jax.checkpoint import kept, leaves, store
from bigmodel_jax.config import Config
from bigmodel_jax.core import mirror, params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.training import constants, run_folder
from bigmodel_jax.training.saved import load_weights

How = Literal["predictions", "logits", "weights", "soup"]
AVERAGED = ("weights", "soup")  # combinations that result in a single model
MODEL = ("model", "adapters", "mup")  # the parts of a config that determine the parameters


class Member(NamedTuple):
    """One checkpoint of a run; which: as in `load_weights`; name: what the user typed."""

    name: str
    folder: Path
    config: Config
    which: str

    def weights(self, mesh) -> params.Tree:
        """The member's merged parameters on `mesh`."""
        return load_weights(self.config, self.folder, mesh, self.which, f"ensemble: {self.name}")[0]


def parallel_of(sources: list[str]) -> ParallelConfig:
    """The mesh config of the first run.

    If there is none, this is the default, and `open_members` reports the error.
    """
    folder = kept.split(sources[0])[0] if sources else Path()
    return run_folder.load(folder).parallel if sources and (folder / "config.json").is_file() else ParallelConfig()


def open_members(sources: list[str], last: int, how: How, parallel: ParallelConfig = ParallelConfig()) -> list[Member]:
    """The members that RUN, RUN@STEP and RUN@best name.

    last: take this many newest saves of the only run; 0 = off. parallel: the mesh config for all
    members. Raises ValueError, one line, for fewer than two members, a member that is no run, or
    members that do not fit together.
    """
    found = [_open(source) for source in sources]
    if last:
        found = _newest(found, last)
    if len(found) < 2:
        raise ValueError(
            f"ensemble: {', '.join(sources) or 'nothing'} is {'no' if not found else 'a single'} member; give two runs or "
            "more (RUN, RUN@STEP or RUN@best), or one run and --last N"
        )
    names = [member.name for member in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"ensemble: {twice[0]} is named twice; each member counts once")
    # Runs may have trained on different meshes, but their arrays meet in one program.
    found = [m._replace(config=dataclasses.replace(m.config, parallel=parallel)) for m in found]
    for other in found[1:]:
        check_same(found[0], other, how)
    return found


def _open(source: str) -> Member:
    folder, which = kept.split(source)
    if not (folder / "config.json").is_file():
        raise ValueError(f"ensemble: {source!r} is not a run's folder, FOLDER@STEP or FOLDER@best")
    if not mirror.origin(folder / "checkpoints").is_dir():
        raise ValueError(f"ensemble: {source!r} holds no checkpoints; train it first")
    config = run_folder.load(folder)
    # A missing step is reported here, before any member is evaluated.
    kept.find(folder, config.checkpoint, which, f"ensemble: {source}")
    return Member(source, folder, config, which)


def _newest(found: list[Member], last: int) -> list[Member]:
    if len(found) != 1 or found[0].which:
        raise ValueError(
            f"--last {last} needs one run without a step; the members are: {', '.join(m.name for m in found)}"
        )
    (run,) = found
    steps = store.steps(store.open_store(run.folder / "checkpoints", run.config.checkpoint))
    if not 2 <= last <= len(steps):
        raise ValueError(
            f"--last {last}: {run.name} holds {len(steps)} saves ({', '.join(map(str, steps))}); it must be 2 or more and at "
            f"most as many; a run keeps checkpoint.keep = {run.config.checkpoint.keep} of them"
        )
    return [run._replace(name=f"{run.name}@{step}", which=str(step)) for step in steps[-last:]]


# ---------------------------------------------------------------- what the members have in common


def check_same(first: Member, other: Member, how: How) -> None:
    """Raises ValueError, one line, with the first field or file that differs and must not."""
    # Averaged weights need equal models. Averaged predictions need equal tasks and data.
    parts = MODEL if how == "weights" else (*MODEL, "objective", "data") if how == "soup" else ("objective", "data")
    changed = run_folder.differences(first.config, other.config)
    for name, (a, b) in changed.items():
        if name.split(".")[0] in parts:
            raise ValueError(
                f"ensemble: {name} is {a!r} in {first.name} and {b!r} in {other.name}; it must be the same for --how {how}"
            )
    for file in ("tokenizer.json", "vocabulary.json", "scaling.json"):
        texts = [_text(member.folder / file) for member in (first, other)]
        # A run may lack such a file. Only files that both have are compared.
        if None not in texts and texts[0] != texts[1]:
            raise ValueError(f"ensemble: {first.name} and {other.name} hold different {file}; members must share it")
    if how in AVERAGED:
        _check_parameters(first, other)


def _text(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _check_parameters(first: Member, other: Member) -> None:
    """Raises ValueError if parameters differ in name or shape, or constants in their digests.

    Constants must be equal because an adapter is only meaningful with the base that it was trained
    on.
    """
    a, b = ({p: (x.shape, x.kind) for p, x in _spec(member).items()} for member in (first, other))
    if differ := sorted(path for path in a | b if a.get(path) != b.get(path)):
        raise ValueError(
            f"ensemble: parameter {differ[0]} is {a.get(differ[0], 'missing')} in {first.name} and "
            f"{b.get(differ[0], 'missing')} in {other.name}; only equal models have a mean"
        )
    bases = [_constants(member.folder) for member in (first, other)]
    if differ := sorted(path for path in bases[0] | bases[1] if bases[0].get(path) != bases[1].get(path)):
        raise ValueError(
            f"ensemble: the constant {differ[0]} has other values in {other.name} than in {first.name}; adapters and weights "
            "beside frozen ones have a mean only on the same base"
        )


def _spec(member: Member) -> dict[str, params.Param]:
    return params.paths(member.config.make_model().spec)


def _constants(folder: Path) -> dict[str, int]:
    """{path: digest} of each constant. A copy in blocks has one digest per array."""
    found = {path: place.digest for path, place in constants.references(folder).items()}
    if mirror.origin(folder / constants.FOLDER / "0").is_dir():
        described = leaves.describe(folder / constants.FOLDER, 0)
        found |= {leaf.removeprefix(f"{constants.FOLDER}/"): about.digest for leaf, about in described.items()}
    return found
