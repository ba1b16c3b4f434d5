"""s3:// for data, in an environment of the extra `s3`, which conflicts with the group `dev`.

It needs uv and an index.

pytest -m exhaustive tests/data/s3_test.py
"""

import functools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import runs

ROOT = Path(__file__).parents[2]
PUT = (
    "import s3fs, sys; s3fs.S3FileSystem().mkdir('bucket'); s3fs.S3FileSystem().put(sys.argv[1:], 's3://bucket/texts/')"
)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment that has the extra and a server of S3."""
    folder = tmp_path_factory.mktemp("s3")
    env = os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder)}
    uv = functools.partial(subprocess.run, check=True, cwd=ROOT, env=env)
    uv(["uv", "sync", "-q", "--locked", "--no-compile-bytecode", "--extra", "s3", "--python", sys.executable])
    uv(["uv", "pip", "install", "-q", "--no-compile-bytecode", "--python", folder / "bin/python", "moto[server]>=5.2"])
    return folder / "bin" / "python"


@pytest.fixture
def environment(python, tmp_path):
    """What leads a process to the server, which has no bucket yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=10).close()
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.1)
    yield os.environ | {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "BIGMODEL_CACHE": str(tmp_path / "cache"),
        "JAX_NUM_CPU_DEVICES": "1",
    }
    server.kill()
    server.wait()


@pytest.mark.exhaustive
def test_a_run_learns_from_s3_what_it_learns_from_a_disk_and_saves_elsewhere(python, environment, tmp_path):
    def launch(*args: str) -> subprocess.CompletedProcess:
        command = [python, ROOT / "launch.py", *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)

    config = runs.write(tmp_path)
    here = launch("train", config, "--run_dir", tmp_path / "disk")
    assert here.returncode == 0, here.stderr
    text = config.read_text()
    for name in ("train.txt", "validation.txt"):
        text = text.replace(str(tmp_path / name), f"s3://bucket/texts/{name.replace('rain', '*')}")
    config.write_text(text.replace(str(tmp_path / "cache"), str(tmp_path / "another")))
    without = launch("train", config, "--run_dir", tmp_path / "a")
    assert without.returncode == 2
    assert "data.source.train = 's3://bucket/texts/t*.txt': there is no bucket 'bucket'" in without.stderr
    names = [tmp_path / "train.txt", tmp_path / "validation.txt"]
    subprocess.run([python, "-c", PUT, *names], env=environment, check=True)
    there = launch("train", config, "--run_dir", tmp_path / "a")
    assert there.returncode == 0, there.stderr
    assert runs.losses(tmp_path / "a") == runs.losses(tmp_path / "disk")
    refused = launch("train", config, "--run_dir", "s3://bucket/runs/a")
    assert refused.returncode == 2
    assert refused.stderr.strip().startswith(
        "error: --run_dir = 's3://bucket/runs/a': s3:// is not read and written here"
    )
    assert not list(tmp_path.glob("s3*"))
