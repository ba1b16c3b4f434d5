"""Each shipped config's flat form and parameter table against a text file, so that no change of
either goes unseen."""

import difflib
from pathlib import Path

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import flat
from bigmodel_jax.core import params

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
GOLDEN = ROOT / "tests" / "golden"


def describe(path: Path) -> str:
    config = config_file.load(path)
    spec = config.make_model().spec
    fields = "\n".join(f"{name} = {value!r}" for name, value in flat(config).items()).replace(f"{ROOT}/", "")
    counts = f"{params.count(spec, trainable=True)} trainable, {params.count(spec, trainable=False)} frozen"
    return f"{fields}\n\n{params.table(spec)}\n{counts}\n"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_and_parameters_are_as_written_down(path, request):
    golden = GOLDEN / f"{path.stem}.txt"
    now = describe(path)
    if request.config.getoption("--update-golden"):
        golden.write_text(now)
    written = golden.read_text() if golden.exists() else ""
    changed = difflib.unified_diff(written.splitlines(), now.splitlines(), "written down", "now", lineterm="", n=0)
    # Not `assert now == written`: pytest would cut the diff short.
    if now != written:
        pytest.fail(
            f"{path.relative_to(ROOT)} is not what {golden.relative_to(ROOT)} says. If the change is meant:\n"
            "  uv run --group dev pytest tests/golden_test.py --update-golden\n" + "\n".join(changed),
            pytrace=False,
        )


def test_no_golden_file_outlives_its_config():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {p.stem for p in CONFIGS}
