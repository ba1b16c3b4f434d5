"""Writes the README.md of an exported folder.

It states the format, the run and its metrics, the licence of the data, and the versions of the
packages that wrote it.
"""

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.data.corpus import kept_cards
from bigmodel_jax.data.corpus.corpus import corpora
from bigmodel_jax.export.subject import Written
from bigmodel_jax.report.writers import METRICS_FILE, read_metrics

CARD = "README.md"
MADE_WITH = ("bigmodel-jax", "jax")


def write(
    folder: Path,
    title: str,
    config: Config,
    run_dir: Path,
    written: Written,
    *,
    about: str,
    needs: Sequence[str],
    name: str,
) -> None:
    """Writes the card of a folder.

    All other files must be there already, since the card lists them.

    about: a description of the format; needs: the packages that use.py imports; name: the format's
    name.
    """
    rows = {
        "Format": f"{name}: {written.said}",
        "Model": f"{type(config.model).__name__}, {params.count(config.model.make().spec):,} parameters",
        "Trained for": type(config.objective).__name__,
        "Run": f"{run_dir.resolve().name}, step {written.step:,}",
        **_data(config, run_dir, written.step),
        "Written by": ", ".join(f"{package} {version}" for package, version in _versions((*MADE_WITH, *needs))),
    }
    lines = [f"# {title}", "", about, "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    lines += [
        "",
        "## Use",
        "",
        f"`python use.py` needs {' and '.join(needs)}; its first lines say what else it does.",
        "",
    ]
    lines += ["## Files", "", "| file | bytes |", "| --- | --- |"]
    lines += [f"| {path.relative_to(folder)} | {path.stat().st_size:,} |" for path in _files(folder)]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    # A bar or a line break would end the cell of a Markdown table.
    return text.replace("|", "\\|").replace("\n", " ")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _data(config: Config, run_dir: Path, step: int) -> dict[str, str]:
    """Rows about the training data, its licence and the metrics.

    A run that has no metrics file was imported and not trained, and its row says so.
    """
    if not (run_dir / METRICS_FILE).is_file():
        return {"Data": "none of this run's: its weights were imported, and no training of it is recorded"}
    source = getattr(config.data, "source", None)
    what = type(config.data).__name__ + (f" of {source.short_name()}" if hasattr(source, "short_name") else "")
    licences = "; ".join(dict.fromkeys(_licences(config, run_dir)))
    return {"Data": what, "Licence of the data": licences or "not stated by the data", **_metrics(run_dir, step)}


def _licences(config: Config, run_dir: Path) -> Iterator[str]:
    """Yields the licences of the corpora that the run trained on, from its folder and from its
    config.
    """
    for path in sorted((run_dir / kept_cards.FOLDER).glob("*.json")):
        if licence := json.loads(path.read_text("utf-8")).get("licence"):
            yield licence
    for corpus, _ in corpora(config.data):
        if corpus.licence:
            yield corpus.licence


def _metrics(run_dir: Path, step: int) -> dict[str, str]:
    """The metrics of the last evaluation up to the exported step, with that evaluation's step."""
    evaluated = [r for r in read_metrics(run_dir) if r["step"] <= step and any(key.startswith("eval/") for key in r)]
    if not evaluated:
        return {"Metrics": "no evaluation up to this step is recorded"}
    # Later evaluations are left out above: they judged weights that this folder does not hold.
    newest = evaluated[-1]
    figures = {k.removeprefix("eval/"): v for k, v in newest.items() if k.startswith("eval/")}
    said = [f"{key} {value:.6g}" for key, value in figures.items() if isinstance(value, int | float)]
    return {f"Metrics at step {newest['step']:,}": ", ".join(said)}


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (package, version) for the packages that are installed here."""
    for package in dict.fromkeys(packages):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
