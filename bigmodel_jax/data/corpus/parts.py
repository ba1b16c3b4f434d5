"""A source as several that can be read at once."""

import dataclasses
import glob
from pathlib import Path

from bigmodel_jax.data.sources.sources import Files, Source
from bigmodel_jax.data.steps import Steps


def parts(source: Source, split: str, root: Path) -> list[Source]:
    """Sources whose records of `split`, one source after another, are those of `source`: one for each file that it reads."""
    if isinstance(source, Steps):
        return [dataclasses.replace(source, source=part) for part in parts(source.source, split, root)]
    paths = source.paths(split) if isinstance(source, Files) else []
    if not paths or any("," in str(path) for path in paths):  # such a path is no pattern
        return [source]
    return [dataclasses.replace(source, **{split: glob.escape(str(path))}) for path in paths]
