"""README and docs show these files whole; tests/config_file_test.py and tests/training/pairs_test.py train them."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


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
