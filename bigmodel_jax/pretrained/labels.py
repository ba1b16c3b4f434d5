"""Names of classes: from a source's config.json into a run's folder, and from there into an export's."""

import json
from pathlib import Path

from bigmodel_jax.pretrained import config_json

KEPT = "labels.json"  # in a run's folder
NAMES = ("id2label", "label2id", "problem_type")


def keep(source: Path, run_dir: Path) -> None:
    """Writes what `source` says of its classes into the run's folder; nothing where it says nothing."""
    config = source / "config.json"
    if not config.is_file():
        return
    said = json.loads(config.read_bytes())
    found = {name: said[name] for name in NAMES if said.get(name)}
    if found:
        (run_dir / KEPT).write_text(json.dumps(found, indent=2) + "\n")


def restore(run_dir: Path, target: Path) -> None:
    """Writes what the run's folder holds of its classes into the export's config.json, in place of names made of numbers."""
    path, config = run_dir / KEPT, target / "config.json"
    if not path.is_file():
        return
    hf = json.loads(config.read_text())
    if "id2label" in hf:  # an architecture without classes has nothing to name
        config.write_text(json.dumps(hf | config_json.read_table(path), indent=2) + "\n")
