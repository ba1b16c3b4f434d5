"""The data cards of the corpora that a run trains on, kept in its folder for its page."""

import shutil
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.corpus.corpus import corpora
from bigmodel_jax.data.corpus.prepare import CARD

FOLDER = "data_cards"


def keep(run_dir: Path, data: DataConfig) -> None:
    """Copies each corpus's card to `run_dir`/data_cards."""
    for corpus, part in corpora(data):
        card = corpus.folder(part.root()) / CARD
        if card.is_file():
            (run_dir / FOLDER).mkdir(exist_ok=True)
            with files.replacing(run_dir / FOLDER / f"{card.parent.name}.json") as temporary:
                shutil.copyfile(card, temporary)
