"""Splits a source into parts that can be read in parallel."""

import dataclasses
import glob
from pathlib import Path

from bigmodel_jax.data.sources.sources import Files, Source
from bigmodel_jax.data.steps import Steps


def parts(source: Source, split: str, root: Path) -> list[Source]:
    """Return one source per file of `source`. In order, they have the records of `source`."""
    if isinstance(source, Steps):
        return [dataclasses.replace(source, source=part) for part in parts(source.source, split, root)]
    paths = source.paths(split) if isinstance(source, Files) else []
    if not paths or any("," in str(path) for path in paths):  # a path with a comma cannot be written as a pattern
        return [source]
    return [dataclasses.replace(source, **{split: glob.escape(str(path))}) for path in paths]
