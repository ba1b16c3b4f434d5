"""The pages' commands, as they are written, with small stand-ins for the configs and runs that they
name."""

import contextlib
import glob
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from page_stand_ins import LONG, make_stand_ins

import bucket_server
import jobs
from bigmodel_jax.cli import main
from bigmodel_jax.export import converter_env
from chaos_runs import Commands

ROOT = Path(__file__).parents[1]
DEVICES = jax.devices()
# Runs that commands name and do not make -> the command that makes them here.
RUNS = {
    **{name: f"train configs/{name}.py" for name in ("lm_tiny", "mnist_mlp", "mnist_cnn", "linear_regression")},
    "mine": "train configs/mnist_mlp.py --run_dir runs/mine --checkpoint.every 20 --checkpoint.keep 5",
    "fsdp": "train configs/mnist_cnn.py --run_dir runs/fsdp --parallel.fsdp 8",
    **{name: f"import smollm2-135m-instruct --run_dir runs/{name}" for name in ("smollm2", "chat")},
    "notes": "train notes.py --train.steps 8",
}
# A page -> its own runs of these names; the first commands make what the last one reads.
OWN = {
    "docs/export": {
        "mine": "import smollm2-135m-instruct && benchmarks/finetune_data.py data && "
        "train configs/lora_smollm2.py --run_dir runs/mine --train.steps 2",
    },
}
COPIES = dict.fromkeys(("seed0", "seed1", "seed2", "a", "b", "c"), "mnist_mlp") | {"my_model": "lm_tiny"}
PAGES = (
    *("README", "CONTRIBUTING", "docs/data", "docs/ensemble", "docs/eval", "docs/explain", "docs/generate"),
    *("docs/profile", "docs/prune", "docs/quantize", "docs/report", "docs/sharding", "docs/text_classification"),
    *("docs/train", "docs/tune", "docs/detection", "docs/images", "docs/segmentation", "docs/self_play"),
    *("docs/vision_language", "docs/distill", "docs/import", "docs/preference", "docs/transcribe"),
    *("docs/scale", "docs/sweep", "docs/onnx_litert", "docs/security", "docs/serve", "docs/speech"),
    "docs/export",
)
# These pages have commands as well. Page -> the test that reads its commands and runs them.
OTHERS = {
    "docs/cluster": "cluster/cluster_page_test.py",
    "docs/deploy": "deploy_page_test.py",
    "docs/finetune": "finetune_page_test.py",
    "docs/regression": "models/linear_test.py",
}
# A text in a command -> the test that reads the commands with this text and runs them.
ELSEWHERE = {
    "mixture": "data_page_test.py",
    "prepare corpus.py --workers": "data_page_test.py",
    "runs/two": "training/several_adapters_test.py",
}
# Part of a command that cannot run here -> why, and the tests of its verb.
NOWHERE = {
    "train CONFIG": "the extra s3 conflicts with the tests' packages: data/s3_test.py makes an environment",
    "corpus.py --engine beam": "it needs a Flink cluster: data/beam_test.py",
    "lambada_openai": "its questions lie on the Hugging Face Hub: harness/",
    "configs/llama3_8b.py": "the model compiles for minutes or hours: plan/ and scaling/",
}


# The values of the loops in docs/scale.md, and smaller ones.
LOOPS = {"96 144 192": "16 32 48", "225 450 900": "4 6 8"}
COMMAND = r"(?:uv run .*?(?:launch.py |(?=benchmarks/))|^python (?=exported/))(.*?)(?:  #.*)?$(?:\nerror: ([^`]*))?"


def commands(page: str) -> list[tuple[str, str]]:
    """(arguments of launch.py, or a script and its own; the error that the page shows below) for
    each command of a page that runs here."""
    text = (ROOT / f"{page}.md").read_text()
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if not kind]
    blocks = [unrolled(block) if block.startswith("for ") else block.replace("\\\n", " ") for block in blocks]
    found = [one for block in blocks for one in re.findall(COMMAND, block, re.M)]
    found += [(args, "") for args in re.findall(r"^\|[^`\n]*`uv run [^`…]*?launch.py ([^`…]*)`", text, re.M)]
    return [(args.strip(), error) for args, error in found if not any(part in args for part in ELSEWHERE | NOWHERE)]


def unrolled(block: str) -> str:
    """The commands that the shell's loops of a block give, with fewer steps and smaller sizes."""
    for shown, smaller in LOOPS.items():
        block = block.replace(shown, smaller)
    # `set -f`: no run is there yet for `runs/law/*`.
    script = f'set -f; uv() {{ echo uv "$@"; }}\n{block}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout


def test_each_page_with_commands_runs_here_or_says_where():
    pages = [
        path.relative_to(ROOT).with_suffix("").as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
    ]
    assert {page for page in pages if commands(page)} == {*PAGES, *OTHERS}


def see(devices: list[jax.Device], monkeypatch) -> None:
    """From now on, JAX has these devices."""
    for name, value in {"devices": devices, "local_devices": devices}.items():
        monkeypatch.setattr(jax, name, lambda *_, value=value, **__: value)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *_: len(devices))


def call(command: str, monkeypatch) -> None:
    """Runs a command on one device, or on all eight where it cuts or copies a model."""
    see(DEVICES if re.search(r"--parallel\.(fsdp [28]|strategy)", command) else DEVICES[:1], monkeypatch)
    words = shlex.split(command)
    # The shell would write out the runs of a pattern.
    words = [name for word in words for name in (word.startswith("runs/") and sorted(glob.glob(word))) or [word]]
    if words[0] == "serve":
        serve(words)
    elif words[0].startswith("exported/"):
        subprocess.run([converter_env.ensure(words[0].split("/")[1]) / "bin/python", *words], check=True)
    elif words[0].endswith(".py"):
        subprocess.run([sys.executable, ROOT / words[0], *words[1:]], check=True)
    else:
        with bucket(monkeypatch) if "gs://" in command else contextlib.nullcontext():
            main(words)


@contextlib.contextmanager
def bucket(monkeypatch) -> Iterator[None]:
    """A server of the bucket that the page names."""
    monkeypatch.setattr(bucket_server, "BUCKET", "my-runs")
    with bucket_server.serving(Path.cwd(), monkeypatch):
        yield


def serve(words: list[str]) -> None:
    """Starts a server on a free port, and asks it as docs/serve.md does."""
    port = str(jobs.free_port())
    ask = re.search(r"```python\n(.*?)```", (ROOT / "docs/serve.md").read_text(), re.S)[1]
    with Commands(Path("said")).serving(port, *words, "--port", port, real=True):
        exec(ask.replace("8000", port))


def refuse(command: str, shown: str, capsys) -> None:
    """Runs a command that ends with the error that the page shows."""
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(" ".join(part.split()) in said for part in shown.split("…"))


def bring(name: str, kept: Path, monkeypatch) -> None:
    """Puts a run into runs/: a copy of the one in `kept`, where it is made at its first use."""
    own = COPIES.get(name, name)
    if not (kept / own).exists():
        for command in RUNS[own].split(" && "):
            call(command, monkeypatch)
        shutil.copytree(f"runs/{own}", kept / own)
    shutil.copytree(kept / own, f"runs/{name}", dirs_exist_ok=True)


def run(command: str, kept: Path, monkeypatch) -> None:
    """Runs one command; a run that it reads must be there, and a run that it trains must not."""
    command = command.replace("/dev/shm", str(kept))  # all of the machine's processes share that folder
    words = shlex.split(command)
    told = words[words.index("--run_dir") + 1] if "--run_dir" in words else ""
    for name in re.findall(r"(?<!-)\bruns/([\w-]+)", command):
        if name in RUNS | COPIES and not Path("runs", name).exists() and f"runs/{name}" != told:
            bring(name, kept, monkeypatch)
    if words[0] == "train" and words[1].endswith(".py"):
        shutil.rmtree(told or f"runs/{Path(words[1]).stem}", ignore_errors=True)
    call(command, monkeypatch)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The runs that several pages read."""
    return tmp_path_factory.mktemp("kept")


# All pages together take minutes, so most are exhaustive.
@pytest.mark.slow
@pytest.mark.few("docs/sharding", "docs/import", "docs/transcribe", "docs/security")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, kept, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, page)
    for name, command in OWN.get(page, {}).items():
        monkeypatch.setitem(RUNS, name, command)
    place = kept / "own" if page in OWN else kept / "long" if page in LONG else kept
    for command, error in commands(page):
        if error:
            refuse(command, error, capsys)
        else:
            run(command, place, monkeypatch)
