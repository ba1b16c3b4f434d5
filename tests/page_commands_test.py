"""The pages' commands, as they are written, with small stand-ins for the configs and runs that they
name."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from bigmodel_jax.cli import main

ROOT = Path(__file__).parents[1]
STAND_IN = """
import importlib.util

from bigmodel_jax.config import override

spec = importlib.util.spec_from_file_location("shipped", {path!r})
shipped = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shipped)


def get_config():
    return override(shipped.get_config(), {options!r}.split())
"""
LM = (
    "--model.embed_dim 16 --model.num_heads 4 --model.num_kv_heads 2 --model.head_dim 4 --model.mlp_dim 32 "
    "--model.vocab_size 300 --data.tokenizer.vocab_size 300 --data.seq_len 32 --eval.batch_size 256 "
    "--eval.sample.max_tokens 4 --checkpoint.every 100 --checkpoint.keep 9"
)
# Config -> the options that make it small. Numbers of steps stay where commands name steps.
CONFIGS = {
    "configs/lm_tiny.py": LM,
    "configs/mnist_mlp.py": "--model.hidden_dims 32 --train.steps 200 --optim.warmup_steps 10",
    "configs/mnist_cnn.py": "--model.channels 4 4 4 --model.hidden_dim 8 --train.steps 8 --optim.warmup_steps 2",
    "configs/linear_regression.py": "",
    "configs/text_classification.py": "--train.steps 20 --train.batch_size 16 --eval.every 0",
    "tests/examples/one_file_model.py": "--model.vocab_size 300 --data.tokenizer.vocab_size 300 --data.seq_len 32",
}
# Runs that commands name and do not make -> the command that makes them here.
RUNS = {
    **{name: f"train configs/{name}.py" for name in ("lm_tiny", "mnist_mlp", "mnist_cnn", "linear_regression")},
    **{name: f"train configs/mnist_mlp.py --run_dir runs/{name}" for name in ("seed0", "seed1", "seed2", "a", "b", "c")},
    "mine": "train configs/mnist_mlp.py --run_dir runs/mine --checkpoint.every 40 --checkpoint.keep 5",
    "fsdp": "train configs/mnist_cnn.py --run_dir runs/fsdp --parallel.fsdp 8",
}
PAGES = (
    *("README", "docs/data", "docs/ensemble", "docs/eval", "docs/explain", "docs/generate", "docs/profile", "docs/prune"),
    *("docs/quantize", "docs/report", "docs/sharding", "docs/text_classification", "docs/train", "docs/tune"),
)
# Part of a command -> what runs such commands instead.
ELSEWHERE = {
    "smollm2": "finetune_page_test.py and deploy_page_test.py, which have the weights",
    "mixture": "data_page_test.py",
    "exported/mine": "finetune_page_test.py",
    "corpus.py": "data_page_test.py has its own corpus",
    "gs://": "tests/training/bucket_test.py",
    "s3/bin": "nothing: a bucket of Amazon's",
    "trian": "tests/cli_test.py",
    "runs/two": "tests/inference",
    "runs/notes": "the reader's files",
    "--harness": "tests/harness",
    "plan configs/llama3_8b.py": "tests/plan",
    "/dev/shm": "tests/checkpoint",
}


def commands(page: str) -> list[str]:
    """The arguments of launch.py in each command of a page that no other test runs."""
    text = (ROOT / f"{page}.md").read_text()
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if not kind]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line.partition("launch.py ")[2].partition("  #")[0].strip() for line in lines if "uv run" in line]
    return [line for line in found if line and not any(part in line for part in ELSEWHERE)]


def test_each_page_has_commands():
    assert [page for page in PAGES if not commands(page)] == []


def make_stand_ins(folder: Path) -> None:
    for name, options in CONFIGS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.format(path=str(ROOT / name), options=options))
    texts = "".join(f"a film with {word} number {n}\t{label}\n" for n in range(30) for word, label in (("joy", "good"), ("gloom", "bad")))
    (folder / "data").mkdir()
    for split in ("train", "test"):
        (folder / "data" / f"{split}.txt").write_text(texts)


def run(command: str) -> None:
    """Runs one command; a run that it names must be there, and a run that it trains must not."""
    words = shlex.split(command)
    told = words[words.index("--run_dir") + 1] if "--run_dir" in words else ""
    for name in re.findall(r"\bruns/(\w+)", command):
        if name in RUNS and not Path("runs", name).exists() and f"runs/{name}" != told and RUNS[name] != command:
            main(shlex.split(RUNS[name]))
    if words[0] == "train" and words[1].endswith(".py"):
        shutil.rmtree(told or f"runs/{Path(words[1]).stem}", ignore_errors=True)
    main(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path)
    for command in commands(page):
        run(command)
