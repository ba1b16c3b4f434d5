"""Carries the names of classes from an imported config.json to the run's folder, and on to an
export.
"""

import json
from pathlib import Path

from bigmodel_jax.pretrained import config_json

KEPT = "labels.json"  # the file in a run's folder
NAMES = ("id2label", "label2id", "problem_type")


def keep(source: Path, run_dir: Path) -> None:
    """Copies the class names of the folder `source` into the run's folder.

    Does nothing if it has none.
    """
    config = source / "config.json"
    if not config.is_file():
        return
    said = json.loads(config.read_bytes())
    found = {name: said[name] for name in NAMES if said.get(name)}
    if found:
        (run_dir / KEPT).write_text(json.dumps(found, indent=2) + "\n")


def restore(run_dir: Path, target: Path) -> None:
    """Writes the run's class names into the export's config.json, over the numbered names there."""
    path, config = run_dir / KEPT, target / "config.json"
    if not path.is_file():
        return
    hf = json.loads(config.read_text())
    if "id2label" in hf:  # an architecture without classes has no such key
        config.write_text(json.dumps(hf | config_json.read_table(path), indent=2) + "\n")
