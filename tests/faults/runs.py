"""A run small enough for tests: one config file as a user writes it, over a text file of its
own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CONFIG = """
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData, TextFiles, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

def get_config():
    return Config(
        model=LlamaConfig(
            vocab_size=264, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
            max_seq_len=48,
        ),
        objective=NextToken(),
        data=TextData(
            source=TextFiles(train={train!r}, validation={validation!r}),
            tokenizer=TokenizerConfig("bytes"), seq_len=32, cache_dir={cache!r},
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=2, schedule="constant"),
        train=TrainConfig(steps=12, batch_size=8, log_every=1),
        eval=EvalConfig(batch_size=8, sample=SampleConfig(prompt="the ", max_tokens=8)),
        checkpoint=CheckpointConfig(every=4, keep=3),
    )
"""
# Options of a run whose endings are no part of the test.
BARE = ("--eval.baselines", "False", "--eval.sample.prompt", "")
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. "


def write(folder: Path) -> Path:
    """The config file, with its texts beside it."""
    train, validation = folder / "train.txt", folder / "validation.txt"
    train.write_text("".join(TEXT[i % 40 :] for i in range(60)))
    validation.write_text(TEXT * 4)
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(train=str(train), validation=str(validation), cache=str(folder / "cache")))
    return path


def write_adapted(folder: Path, base: Path) -> Path:
    """The config file of a run that trains LoRA adapters beside the run `base`; `write` comes
    first."""
    text = (
        (folder / "tiny.py")
        .read_text()
        .replace("data=TextData(", "adapters=Lora(rank=2, alpha=4.0),\n        data=TextData(")
    )
    text = text.replace("train=TrainConfig(", f"train=TrainConfig(init_from={str(base)!r}, ")
    path = folder / "adapted.py"
    path.write_text(f"from bigmodel_jax.models.adapters import Lora\n{text}")
    return path


def start(*args: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    """`python launch.py ARGS` as a process of its own."""
    env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), COLUMNS="120", **environment)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *map(str, args)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def launch(*args: str, devices: int = 1, **environment: str) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    process = start(*args, devices=devices, **environment)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def killed(run_dir: Path, step: int, folder: Path) -> Path:
    """A copy of a run in `folder`, as a kill before the save of `step`, its last one, leaves it."""
    shutil.copytree(run_dir, folder)
    shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def losses(run_dir: Path) -> dict[int, float]:
    """{step: logged training loss}."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in records if "loss" in r}
