"""Messages on a missing package: the command is `uv sync --extra NAME` wherever an extra has the
package."""

import re
import tomllib
from pathlib import Path

from bigmodel_jax.data.sources import packaged
from bigmodel_jax.report.writers import TRACKERS

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What no extra has: the package that a builder of TFDS asks for, Ray, and uv itself.
OTHERS = {"data/sources/tfds_names.py", "cluster/submit.py", "export/converter_env.py"}
FILES = {str(path.relative_to(ROOT / "bigmodel_jax")): path.read_text() for path in ROOT.glob("bigmodel_jax/**/*.py")}


def test_every_command_names_an_extra_of_pyproject():
    named = {name for text in FILES.values() for name in re.findall(r"uv sync --extra ([\w-]+)", text)}
    assert {"clean", "gcs", "harness", "metrics", "plan", "plan-gpu", "pretrained", "serve", "sweep"} <= named
    assert named | set(TRACKERS) | set(packaged.EXTRAS.values()) <= EXTRAS.keys()


def test_no_other_form_of_the_command_stands_in_a_message():
    other = re.compile(r"pip install|uv run --extra|uv add")
    found = {name for name, text in FILES.items() if other.search(text) and not name.startswith("export/use/")}
    assert found == OTHERS
