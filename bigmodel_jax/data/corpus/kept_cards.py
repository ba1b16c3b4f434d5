"""Copies of the data cards of a run's corpora, kept in the run's folder for its report page."""

import shutil
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.corpus.corpus import corpora
from bigmodel_jax.data.corpus.prepare import CARD

FOLDER = "data_cards"


def keep(run_dir: Path, data: DataConfig) -> None:
    """Copy each corpus's card to `run_dir`/data_cards."""
    for corpus, part in corpora(data):
        card = corpus.folder(part.root()) / CARD
        if card.is_file():
            (run_dir / FOLDER).mkdir(exist_ok=True)
            with files.replacing(run_dir / FOLDER / f"{card.parent.name}.json") as temporary:
                shutil.copyfile(card, temporary)
