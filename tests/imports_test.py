"""What a start waits for: packages that few runs need are imported where they are used."""

import subprocess
import sys

PROGRAM = """
import sys
import bigmodel_jax.config, bigmodel_jax.models, bigmodel_jax.objectives
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
LATER = {
    "grain", "jinja2", "matplotlib", "optuna", "orbax", "pandas", "pyarrow", "scipy", "sklearn", "starlette", "tensorflow",
    "tensorflow_datasets", "torch", "transformers",
}  # fmt: skip


def test_a_config_imports_no_package_that_takes_long():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert not LATER & set(done.stdout.split())
