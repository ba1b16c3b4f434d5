"""A run's folder as one version of this package leaves it, for the versions after it to open.

    python tests/faults/make_past_run.py CHECKOUT tests/faults/past_runs/NAME

CHECKOUT is a clone of the project at that version. At a release, run it with the release's code,
take the version for NAME, and commit the folder. Where the format is raised
(bigmodel_jax/core/formats.py), do so with the last code before, too.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFIG = """
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, ReportConfig, SampleConfig, TrainConfig
from bigmodel_jax.data import TextData, TextFiles, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

def get_config():
    return Config(
        model=LlamaConfig(
            vocab_size=257, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32,
            max_seq_len=32,
        ),
        objective=NextToken(),
        data=TextData(
            source=TextFiles(train="train.txt", validation="validation.txt"), tokenizer=TokenizerConfig("bytes"),
            seq_len=16, cache_dir="cache",
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=2, schedule="constant", ema_decay=0.9),
        train=TrainConfig(steps=8, batch_size=8, log_every=1),
        eval=EvalConfig(sample=SampleConfig(prompt="the ", max_tokens=4)),
        checkpoint=CheckpointConfig(every=4, keep=1),
        report=ReportConfig(tensorboard=False),
    )
"""
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. "
MADE_AGAIN = ("tensorboard", "plots", "samples", "report.html")


def train(launch: Path, folder: Path, run_dir: str, *options: str) -> None:
    command = [sys.executable, str(launch), "train", "tiny.py", "--run_dir", run_dir, *options]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})


def main(launch: Path, folder: Path) -> None:
    """The run stops at step 8; `longer.jsonl` holds what its next 4 steps gave as well, with the
    code that made it."""
    folder.mkdir(parents=True)
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "train.txt").write_text("".join(TEXT[i % 40 :] for i in range(20)))
    (folder / "validation.txt").write_text(TEXT * 2)
    train(launch, folder, "run")
    shutil.copytree(folder / "run", folder / "longer")
    train(launch, folder, "longer", "--train.steps", "12")
    shutil.copyfile(folder / "longer" / "metrics.jsonl", folder / "longer.jsonl")
    for path in (folder / "longer", folder / "cache", *(folder / "run" / name for name in MADE_AGAIN)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    say_no_place(folder)


def say_no_place(folder: Path) -> None:
    """Takes out where the run was made; no version reads it."""
    for path in folder.glob("run/checkpoints/**/commit_success.txt"):
        path.write_text(path.read_text().replace(str(folder.resolve()), ""))
    environment = json.loads((folder / "run" / "environment.json").read_text())
    environment.pop("variables", None)
    (folder / "run" / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() / "launch.py", Path(sys.argv[2]))
