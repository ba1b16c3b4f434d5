"""One server for all tests of this folder that a worker runs."""

import pytest

from servers import running, tiny_served


@pytest.fixture(scope="session")
def server():
    with running(tiny_served()) as found:
        yield found
