"""A user's own recordings: WAV files named by a manifest, with what is said in them."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_jax.core import paths
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache
from bigmodel_jax.data.audio import waveforms
from bigmodel_jax.data.audio.spectrogram import RATE
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources.lines import opened_text, parse_json, read_lines
from bigmodel_jax.data.sources.sources import Files


@dataclasses.dataclass(frozen=True)
class SpeechFiles(Files):
    """Manifests: JSON Lines (.jsonl), or rows under a header (.csv, .tsv); paths are relative to the manifest's folder.

    Records {"audio" (n,) float32 at 16 kHz, "text"}. Other rates, several channels, and 8, 24 or 32 bits are converted; the log
    says so once for each kind. What is truncated or no WAV is a bad record.
    """

    audio_field: str = "audio"
    text_field: str = "text"

    def fingerprint(self, split, root):
        """Of recordings, size and time of change stand for the content."""
        stats = [(str(path), *paths.stat(path)) for path in self._recordings(split)]
        return cache.key(super().fingerprint(split, root), stats)

    def made_from(self, split, root):
        return [*self.paths(split), *self._recordings(split)]

    def _recordings(self, split: str) -> list[Path]:
        return [path for _, path, _ in self._named(split, BadRecords(1 << 62))]

    def _named(self, split: str, bad: BadRecords):
        """(where, path, text) of each line of a manifest whose recording is there."""
        for manifest in self.paths(split):
            for where, row, reason in rows_of(manifest, split):
                reason = reason or self._lacks(row)
                path = manifest if reason else manifest.parent / row[self.audio_field]
                if not path.is_file():
                    reason = f"no such recording: {path}"
                if reason:
                    bad.skip(where, reason)
                else:
                    yield where, path, row[self.text_field]

    def _lacks(self, row: Any) -> str:
        """What is wrong with a line; a transcript may be empty, that of silence, but not left out."""
        if not isinstance(row, dict):
            return f"a JSON object is needed, not {type(row).__name__}"
        for name, option in ((self.audio_field, "audio_field"), (self.text_field, "text_field")):
            if not isinstance(row.get(name), str):
                return f"no text in field {name!r} (data.source.{option}){nearest(name, map(str, row))}"
        return "" if row[self.audio_field].strip() else f"no text in field {self.audio_field!r}"

    def records(self, split, root, bad):
        for where, path, text in self._named(split, bad):
            try:
                samples, said = waveforms.read(path, RATE)
            except ValueError as error:
                bad.skip(where, f"{path}: {error}")
                continue
            if said:
                waveforms.say_once(said)
            yield where, {"audio": samples, "text": text}


def rows_of(manifest: Path, split: str) -> Iterator[tuple[str, Any, str]]:
    """(where, row, what is wrong with it) of each line of a manifest."""
    if manifest.suffix == ".jsonl":
        for number, line, reason in read_lines(manifest):
            row, reason = (None, reason) if reason else parse_json(line)
            yield f"{manifest} line {number}", row, reason
    elif manifest.suffix in (".csv", ".tsv"):
        with opened_text(manifest) as file:
            rows = csv.DictReader(file, delimiter="," if manifest.suffix == ".csv" else "\t")
            for row in rows:
                yield f"{manifest} line {rows.line_num}", row, ""
    else:
        raise ValueError(
            f"data.source.{split}: {str(manifest)!r} is no manifest; its name must end in .jsonl, .csv or .tsv"
        )
