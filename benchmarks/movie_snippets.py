"""Sentiment of film reviews: configs/text_classification.py beside TF-IDF with logistic regression.

uv run benchmarks/movie_snippets.py [--splits 5] [--folder runs/movie_snippets]

The texts are 10,605 film-review snippets with the mean rating of 20 readers each (Hutto and
Gilbert, ICWSM 2014). They are part of vaderSentiment's source distribution, which pip downloads and
a hash verifies. The label is the sign of the rating, for ratings above 0.5 or below -0.5. The split
is scikit-learn's train_test_split(test_size=0.2, random_state=0); `--splits` adds random_state 1, 2
...
"""

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from bigmodel_jax import config_file
from bigmodel_jax.core.metrics import precision_recall_f1
from bigmodel_jax.training.evaluate_saved import evaluate_run

ROOT = Path(__file__).parents[1]
PACKAGE, SDIST = "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LABELS = ("negative", "positive")


def fetch(folder: Path) -> Path:
    """The path of the source distribution, which is downloaded if it is missing."""
    path = folder / SDIST
    command = ["pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), PACKAGE]
    if not path.is_file():
        if not shutil.which("pip"):
            sys.exit(f"{path} is missing, and there is no pip to fetch it with: {' '.join(command)}")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{path} is not the file that was published; remove it")
    return path


def read(sdist: Path) -> list[tuple[str, str]]:
    """(text, label) of every snippet with a rating above 0.5 or below -0.5."""
    with tarfile.open(sdist) as outer, tarfile.open(fileobj=outer.extractfile(INNER)) as inner:
        lines = io.TextIOWrapper(inner.extractfile(TABLE), "latin-1").read().splitlines()
    rows = [line.split("\t", 2)[1:] for line in lines]
    return [(text.strip(), LABELS[float(rating) > 0]) for rating, text in rows if abs(float(rating)) > 0.5]


def baseline(train, test, longest: int) -> float:
    """Test accuracy of scikit-learn's logistic regression on TF-IDF of 1- to `longest`-word
    n-grams, with default settings."""
    vectorizer = TfidfVectorizer(ngram_range=(1, longest))
    features = vectorizer.fit_transform([text for text, _ in train])
    model = LogisticRegression(max_iter=1000).fit(features, [label for _, label in train])
    return model.score(vectorizer.transform([text for text, _ in test]), [label for _, label in test])


def write(train, test, folder: Path) -> dict[str, Path]:
    """Writes {"train": path, "test": path}, two files with a `text<TAB>label` per line."""
    paths = {name: folder / f"{name}.txt" for name in ("train", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        paths[name].write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return paths


def ours(train, test, folder: Path) -> np.ndarray:
    """The confusion matrix on the test file, after a run of the config through the launcher."""
    paths = write(train, test, folder)
    run = folder / "run"
    options = [f for name, path in paths.items() for f in (f"--data.source.{name}", str(path))]
    config = str(ROOT / "configs" / "text_classification.py")
    command = [sys.executable, str(ROOT / "launch.py"), "train", config, "--run_dir", str(run), *options]
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    _, scalars = evaluate_run(config_file.load(run, ["--data.evaluate_on", "test"]), run)
    return np.array(scalars["eval/confusion"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/movie_snippets"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = read(fetch(args.folder))
    print(
        f"{len(rows):,} snippets, test accuracy in %\nsplit  TF-IDF + LR  with word pairs  bag of embeddings",
        flush=True,
    )
    results = []
    for seed in range(args.splits):
        train, test = train_test_split(rows, test_size=0.2, random_state=seed)
        matrix = ours(train, test, args.folder / f"split{seed}")
        theirs = [100 * baseline(train, test, longest) for longest in (1, 2)]
        results.append((*theirs, 100 * np.trace(matrix) / matrix.sum()))
        print("{:5d}  {:11.1f}  {:15.1f}  {:16.1f}".format(seed, *results[-1]), flush=True)
        if seed == 0:
            scores = precision_recall_f1(matrix)
    print(" mean  {:11.1f}  {:15.1f}  {:16.1f}".format(*np.mean(results, axis=0)))
    for c, label in enumerate(LABELS):
        print(f"split 0, {label}: " + "  ".join(f"{k} {100 * scores[k][c]:.1f}" for k in ("precision", "recall", "f1")))


if __name__ == "__main__":
    main()
