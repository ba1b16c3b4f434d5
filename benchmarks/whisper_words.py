"""The word error rate of a speech run on spoken words of held-out voices.

    uv run --extra metrics benchmarks/whisper_words.py RUN [--recordings 200]

RUN is runs/whisper-tiny-en or runs/whisper_tiny_en, before and after fine-tuning. The recordings
are the first of SpokenWords' validation split. `launch.py transcribe` reads them as WAV files.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.io import wavfile

from bigmodel_jax.data.audio.spectrogram import RATE
from bigmodel_jax.data.audio.spoken_words import SpokenWords
from bigmodel_jax.data.base import BadRecords

ROOT = Path(__file__).parents[1]


def write(folder: Path, num: int) -> Path:
    """Write the recordings and return their manifest."""
    found = SpokenWords().records("validation", folder, BadRecords(0))
    rows = []
    for number, (_, record) in enumerate(itertools.islice(found, num)):
        wavfile.write(folder / f"{number}.wav", RATE, record["audio"])
        rows.append(json.dumps({"audio": f"{number}.wav", "text": record["text"]}) + "\n")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(rows))
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--recordings", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write(Path(folder), args.recordings)
        subprocess.run([sys.executable, ROOT / "launch.py", "transcribe", args.run, manifest], check=True)


if __name__ == "__main__":
    main()
