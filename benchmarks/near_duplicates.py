"""Near duplicates of documents by `prepare` and by datatrove: time, memory, recall, false merges.

    uv run --extra clean benchmarks/near_duplicates.py [--documents 1000000] [--workers 2]
        [--sides ours,datatrove]

The documents are seeded random words in ten JSONL files. For each of four Jaccard similarities of
5-grams, one document in a hundred has a twin at the other end of the corpus. A pair counts as
merged if one of the two is dropped. datatrove runs with its defaults, in an environment that uv
makes; it takes several times as long.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from bigmodel_jax.data import ArrayRecordFiles, Corpus, TableFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.duplicates import NearDuplicates
from bigmodel_jax.data.corpus.prepare import prepare

WORDS, NGRAM, FILES = 400, 5, 10
LEVELS = (0.9, 0.8, 0.7, 0.5)
SYLLABLES = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
VOCABULARY = np.array([a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:20]], object)
DATATROVE = ("datatrove==0.10.1", "spacy", "orjson", "fasteners", "tokenizers", "regex", "nltk", "xxhash<4")


def shared_words(jaccard: float) -> int:
    """How many first words two documents must share for this Jaccard similarity of their
    n-grams."""
    grams = WORDS - NGRAM + 1
    return round(2 * grams * jaccard / (1 + jaccard)) + NGRAM - 1


def document(i: int, documents: int) -> str:
    """Document i; the first documents, level by level, have twins at the end of the corpus."""
    words = np.random.default_rng((0, i)).integers(0, len(VOCABULARY), WORDS)
    twin, level = documents - 1 - i, (documents - 1 - i) // (documents // 100)
    if level < len(LEVELS):
        same = shared_words(LEVELS[level])
        words[:same] = np.random.default_rng((0, twin)).integers(0, len(VOCABULARY), WORDS)[:same]
    return " ".join(VOCABULARY[words])


def write(folder: Path, documents: int) -> None:
    folder.mkdir()
    for number, ids in enumerate(np.array_split(np.arange(documents), FILES)):
        with open(folder / f"{number:02d}.jsonl", "w") as file:
            file.writelines(json.dumps({"text": document(i, documents), "id": str(i)}) + "\n" for i in ids.tolist())


def cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def ours(folder: Path, workers: int) -> set[int]:
    """The ids of the documents that `prepare` keeps."""
    corpus = Corpus(TableFiles(f"{folder}/docs/*.jsonl"), (NearDuplicates(),))
    made = prepare(corpus.job(folder), folder / "ours", folder, workers=workers)
    kept = ArrayRecordFiles(f"{made}/train-*.array_record").records("train", folder, BadRecords(0))
    return {int(record["id"]) for _, record in kept}


def datatrove(folder: Path, workers: int) -> set[int]:
    packages = [part for name in DATATROVE for part in ("--with", name)]
    script = Path(__file__).with_name("datatrove_minhash.py")
    command = ["uv", "run", "--no-project", "--python", "3.12", *packages, script, folder, workers]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    kept = [path.read_text().splitlines() for path in (folder / "datatrove" / "kept").glob("*.jsonl")]
    return {int(json.loads(line)["id"]) for lines in kept for line in lines}


def report(name: str, kept: set[int], documents: int, wall: float, cpu: float) -> None:
    pairs = documents // 100
    merged = Counter(
        level
        for level in range(len(LEVELS))
        for i in range(level * pairs, (level + 1) * pairs)
        if i not in kept or documents - 1 - i not in kept
    )
    others = documents - 2 * pairs * len(LEVELS) - sum(pairs * 4 <= i < documents - pairs * 4 for i in kept)
    shares = ", ".join(f"{merged[level] / pairs:.2%} at {jaccard}" for level, jaccard in enumerate(LEVELS))
    print(f"{name}: {wall:.1f} s, {cpu:.1f} s of processor time ({1e6 * cpu / documents:.0f} us a document)")
    print(f"  pairs merged: {shares}; others dropped: {others}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sides", default="ours,datatrove")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "docs", given.documents)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for side in given.sides.split(","):
            wall, cpu = time.perf_counter(), cpu_seconds()
            kept = {"ours": ours, "datatrove": datatrove}[side](folder, given.workers)
            report(side, kept, given.documents, time.perf_counter() - wall, cpu_seconds() - cpu)
            if side == "ours":
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                print(f"  peak memory of the first process {peak / 1024:.0f} MiB, {before / 1024:.0f} before")


if __name__ == "__main__":
    main()
