"""The server's life: a run served from the command line, its end, and a device that is stuck or
fails."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.training.saved import generate_from_run
from servers import OPTIONS, running, tiny_served

ROOT = Path(__file__).parents[2]
ASKED = {"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0}


@pytest.mark.slow
def test_a_step_that_does_not_end_ends_ready_and_not_health():
    options = dataclasses.replace(OPTIONS, stuck_seconds=0.3)
    with running(tiny_served(), options) as server:
        server.app.worker._inbox.put(lambda: time.sleep(1.5))
        time.sleep(0.5)
        said = httpx.get(f"{server.url}/ready")
        assert said.status_code == 503
        assert "a step has not ended for" in said.json()["reason"]
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.post("/v1/completions", **ASKED).status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 200


def test_a_device_that_fails_ends_ready_and_every_text(monkeypatch):
    def fails():
        raise RuntimeError("INTERNAL: the device is lost\nand more")

    with running(tiny_served()) as server:
        (engine,) = server.app.worker._engines.values()
        monkeypatch.setattr(engine, "step", fails)
        for _ in range(2):
            said = server.post("/v1/completions", **ASKED)
            assert said.status_code == 503
            assert (
                "the device has failed: RuntimeError: INTERNAL: the device is lost" in said.json()["error"]["message"]
            )
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.idle()


def test_an_answer_that_takes_too_long_ends():
    options = dataclasses.replace(OPTIONS, request_seconds=0.05)
    with running(tiny_served(), options) as server:
        said = server.post("/v1/completions", **ASKED | {"max_tokens": 100, "ignore_eos": True, "n": 4})
        assert said.status_code == 504
        assert "--request_seconds" in said.json()["error"]["message"]
        assert server.idle()


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *args])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_what_cannot_be_served_is_one_line(tmp_path, capsys):
    path = runs.write(tmp_path)
    assert "port = 99999; it must be 0 or more and at most 65535" in refused(capsys, str(path), "--port", "99999")
    assert "holds no checkpoints; train it first" in refused(capsys, str(path), "--port", "0")
    assert "--length = 100000; it must be at most" in refused(capsys, str(path), "--port", "0", "--length", "100000")
    assert "perhaps you meant '--slots'" in refused(capsys, str(path), "--slot", "3")
    with running(tiny_served()) as server:
        port = server.url.rpartition(":")[2]
        assert f"--port = {port}: Address already in use; give another" in refused(capsys, str(path), "--port", port)


@pytest.mark.slow
def test_a_run_from_the_command_line_and_its_end(tmp_path):
    """After SIGTERM, the server finishes the answers that have begun, refuses new requests, and
    exits with code 0."""
    import openai

    path, run = runs.write(tmp_path), tmp_path / "run"
    cli.main(["train", str(path), "--run_dir", str(run), "--train.steps", "2", *runs.BARE])
    config = config_file.load(run)
    sample = SampleConfig(prompt="the quick", max_tokens=6, temperature=0)
    (expected,) = generate_from_run(config, run, sample, seed=0, num_samples=1)
    command = [sys.executable, ROOT / "launch.py", "serve", run, "--port", "0", "--slots", "2", "--name", "words"]
    environment = os.environ | {"BIGMODEL_SERVE_KEY": "secret"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("words of step 2 on http://127.0.0.1:")
        url = re.search(r"http://\S+", line)[0]
        while httpx.get(f"{url}/ready").status_code != 200:
            time.sleep(0.1)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        asked = {"model": "words", "prompt": "the quick", "max_tokens": 6, "temperature": 0}
        assert "the quick" + client.completions.create(**asked).choices[0].text == expected
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).completions.create(**asked)
        long = {"max_tokens": 8, "stream": True, "n": 16, "extra_body": {"ignore_eos": True}}
        stream = client.completions.create(**asked | long)
        chunks = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        chunks += list(stream)
        assert sum(bool(choice.finish_reason) for chunk in chunks for choice in chunk.choices) == 16
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(openai.APIConnectionError):
            client.completions.create(**asked)
    finally:
        process.kill()
        process.wait()
