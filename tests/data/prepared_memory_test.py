"""The memory of `launch.py prepare` does not grow with the corpus, which is cleaned and tokenized
as it passes."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "corpus.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_gigabyte_takes_the_memory_of_a_quarter():
    spec = importlib.util.spec_from_file_location("benchmark_of_corpora", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small, large = module.memory(250, 1000, starts=(), workers=1, words=100, letters=250)
    assert large <= 1.05 * small
    assert large <= 1024
