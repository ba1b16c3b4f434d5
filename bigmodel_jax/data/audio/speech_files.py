"""A user's own recordings: WAV files and their transcripts, listed in a manifest."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.audio import waveforms
from bigmodel_jax.data.audio.spectrogram import RATE
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources.lines import opened_text, parse_json, read_lines
from bigmodel_jax.data.sources.sources import Listings


@dataclasses.dataclass(frozen=True)
class SpeechFiles(Listings):
    """Manifests in JSON Lines (.jsonl), or in tables with a header (.csv, .tsv).

    Paths are relative to the manifest's folder. The records are {"audio" (n,) float32 at 16 kHz,
    "text"}. Other sample rates, several channels, and samples of 8, 24 or 32 bits are converted;
    the log mentions each kind of conversion once. A truncated file, or one that is not WAV, is a
    bad record.
    """

    audio_field: str = "audio"
    "the manifest's field with the path of a WAV file"
    text_field: str = "text"
    "the manifest's field with the transcript"

    def listed(self, split, root):
        # This lists only the paths, because `records` would decode every recording. The limit is
        # out of reach, because a listing must not fail on bad lines, which `records` counts.
        return [path for _, path, _ in self._named(split, BadRecords(1 << 62))]

    def _named(self, split: str, bad: BadRecords):
        """Yield (where, path, text) for each line of a manifest whose recording exists."""
        for manifest in self.paths(split):
            for where, row, reason in rows_of(manifest, split):
                reason = reason or self._lacks(row)
                # A line with an error has no recording, so the manifest stands in for it and passes
                # the check below.
                path = manifest if reason else manifest.parent / row[self.audio_field]
                if not path.is_file():
                    reason = f"no such recording: {path}"
                if reason:
                    bad.skip(where, reason)
                else:
                    yield where, path, row[self.text_field]

    def _lacks(self, row: Any) -> str:
        """Return what is wrong with a manifest line. An empty transcript means silence."""
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
    """Yield (where, row, what is wrong with the row) for each line of a manifest."""
    if manifest.suffix == ".jsonl":
        for number, line, reason in read_lines(manifest):
            row, reason = (None, reason) if reason else parse_json(line)
            yield f"{manifest} line {number}", row, reason
    elif manifest.suffix in (".csv", ".tsv"):
        with opened_text(manifest) as file:
            rows = csv.DictReader(file, delimiter="," if manifest.suffix == ".csv" else "\t")
            for row in rows:
                # `line_num` counts lines and not rows: a quoted field may hold line breaks.
                yield f"{manifest} line {rows.line_num}", row, ""
    else:
        raise ValueError(
            f"data.source.{split}: {str(manifest)!r} is no manifest; its name must end in .jsonl, .csv or .tsv"
        )
