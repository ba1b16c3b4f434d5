"""Reads and writes the number and the names of a config.json's classes. An import keeps the names
in the run's folder, and an export writes them into its own config.json.
"""

import json
from pathlib import Path

from bigmodel_jax.pretrained import config_json

KEPT = "labels.json"  # the file in a run's folder
NAMES = ("id2label", "label2id", "problem_type")


def num_classes_from_hf(hf: dict) -> int:
    """The number of classes: the length of `id2label`, else `num_labels`, else transformers'
    default of 2.
    """
    return len(hf["id2label"]) if hf.get("id2label") else hf.get("num_labels", 2)


def labels_to_hf(num: int) -> dict:
    """`id2label` and `label2id` for `num` classes. Transformers counts the classes by them.

    The names are LABEL_0, LABEL_1 and so on, as in transformers.
    """
    names = {str(n): f"LABEL_{n}" for n in range(num)}
    return {"id2label": names, "label2id": {name: int(n) for n, name in names.items()}}


def keep(source: Path, run_dir: Path) -> None:
    """Copies the class names of the folder `source` into the run's folder.

    Does nothing if that folder has none.
    """
    config = source / "config.json"
    if not config.is_file():
        return
    said = json.loads(config.read_bytes())
    found = {name: said[name] for name in NAMES if said.get(name)}
    if found:
        (run_dir / KEPT).write_text(json.dumps(found, indent=2) + "\n")


def of_run(run_dir: Path) -> tuple[str, ...]:
    """The names of a run's classes in the order of their numbers; () where its folder has none."""
    published, own = run_dir / KEPT, run_dir / "vocabulary.json"
    if published.is_file():
        names = json.loads(published.read_text()).get("id2label", {})
        # Keys of JSON are texts, and as a text "10" would come before "9".
        return tuple(names[number] for number in sorted(names, key=int))
    return tuple(json.loads(own.read_text()).get("labels", ())) if own.is_file() else ()


def restore(run_dir: Path, target: Path) -> None:
    """Writes the run's class names into the export's config.json, over the numbered names there."""
    path, config = run_dir / KEPT, target / "config.json"
    if not path.is_file():
        return
    hf = json.loads(config.read_text())
    if "id2label" in hf:  # an architecture without classes has no such key
        config.write_text(json.dumps(hf | config_json.read_table(path), indent=2) + "\n")
