"""The memory of `launch.py prepare` does not grow with the corpus, which is cleaned and tokenized
as it passes."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "corpus.py"


def peaks(*megabytes, **how):
    """Peak memory in MiB for a corpus of each size."""
    spec = importlib.util.spec_from_file_location("benchmark_of_corpora", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.memory(*megabytes, starts=(), **how)


@pytest.mark.slow
def test_twice_the_corpus_takes_the_same_memory():
    # A peak is sampled five times a second, and misses some per cent. Memory that grows with the
    # corpus fails each time.
    found = []
    for _ in range(3):
        small, large = peaks(48, 96, shard=8, workers=1)
        assert large <= 1024
        found.append(large / small)
        if found[-1] <= 1.05:
            return
    raise AssertionError(f"twice the corpus takes {found} times the memory")


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_two_gigabytes_take_the_memory_of_half_of_one():
    small, large = peaks(500, 2000)
    assert large <= 1.05 * small
    assert large <= 1024
