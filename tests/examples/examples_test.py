"""README and docs show these files whole; config_file_test.py and
training/model_objective_pairs_test.py train them."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("one_file_model.py", "README.md"),
        ("own_flax_module.py", "README.md"),
        ("own_data_and_objective.py", "docs/data.md"),
    ],
)
def test_a_page_shows_the_file_whole(name, page):
    assert (HERE / name).read_text().strip() in (HERE.parents[1] / page).read_text()


def test_the_readme_shows_the_block_of_ones_own():
    text = (HERE / "own_block.py").read_text()
    assert text[text.index("@dataclasses") : text.index("def get_config")].strip() in README
