import json
import subprocess

import jax

from bigmodel_jax.report.environment import environment, git_revision, write_environment


def test_environment_names_versions_devices_and_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS_TEST", "1")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    write_environment(tmp_path, parameters=12)
    text = (tmp_path / "environment.json").read_text()
    found = json.loads(text)
    assert found["packages"]["jax"] == jax.__version__
    assert found["devices"] == [f"{len(jax.devices())} x {jax.devices()[0].device_kind}"]
    assert found["process_count"] == 1
    assert found["parameters"] == 12
    assert found["variables"]["XLA_FLAGS_TEST"] == "1"
    assert "hush" not in text


def test_command_line_is_shell_quoted(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/launch.py", "train", "a b.py"])
    assert environment()["command"] == "launch.py train 'a b.py'"


def test_git_revision_says_dirty(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert git_revision(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == clean + "+dirty"
