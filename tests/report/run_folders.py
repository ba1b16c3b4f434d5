"""Small run folders for the tests of history, plots and page."""

import json
from pathlib import Path

from bigmodel_jax.data import DataConfig, TextData
from bigmodel_jax.objectives import DPO, Classification, Contrastive, NextToken, Objective
from bigmodel_jax.report import declared

SAMPLE = "fellow <script>alert('x')</script> citizens & friends"


def text_run(folder: Path, *, lr: float = 0.1, steps: int = 8, loss: float = 4.0) -> Path:
    declare(folder, NextToken, "tokens", TextData)
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "step_8.txt").write_text(SAMPLE)
    config = {"model": {"type": "Tiny<Config>", "dim": 8, "rules": {"a": [1, 2]}}, "optim": {"lr": lr}}
    (folder / "config.json").write_text(json.dumps(config | {"train": {"steps": steps}}))
    (folder / "environment.json").write_text('{"packages": {"jax": "1"}, "devices": ["1 x cpu"], "cpu": "Abacus"}')
    records = [training(step, loss / step) for step in range(1, steps + 1)]
    evaluation = {"eval/loss": loss / 4, "eval/perplexity": 7.0, "eval/bits_per_byte": 1.75}
    references = {"eval/xz_bits_per_byte": 2.25, "eval/xz_primed_bits_per_byte": 2.0}
    early = {"step": 1, "eval/loss": loss / 2, "eval/bits_per_byte": 3.5}
    return metrics(folder, [*records, early, {"step": steps} | evaluation | references])


def labelled_run(folder: Path) -> Path:
    """`digit_run` with the names of its classes."""
    digit_run(folder)
    (folder / "vocabulary.json").write_text(
        json.dumps({"words": ["a"], "labels": ["negative & <sadness>", "positive"]})
    )
    return folder


def pairs_run(folder: Path) -> Path:
    """Images and texts told apart, and a picture that the run left."""
    declare(folder, Contrastive, "examples")
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "00000003.png").write_bytes(PICTURE)
    found = {
        "image_to_text_top1": 0.25,
        "image_to_text_top5": 0.5,
        "text_to_image_top1": 0.2,
        "text_to_image_top5": 0.4,
    }
    evaluation = {f"eval/{name}": value for name, value in found.items()} | {"eval/loss": 2.0, "eval/chance_top1": 0.01}
    return metrics(folder, [training(step, 3.0) for step in (1, 2, 3)] + [{"step": s, **evaluation} for s in (2, 3)])


def preference_run(folder: Path) -> Path:
    """A run with rewards of chosen and rejected answers, which share a title and a plot, in
    training and once on held-out pairs."""
    declare(folder, DPO, "tokens")
    rewards = {"chosen_reward": 0.5, "rejected_reward": -0.5, "reward_margin": 1.0, "preference_accuracy": 0.75}
    evaluation = {f"eval/{name}": value for name, value in rewards.items()} | {"eval/loss": 0.4}
    return metrics(folder, [training(step, 0.6) | rewards for step in (1, 2, 3)] + [{"step": 3, **evaluation}])


PICTURE = b"\x89PNG of a run"


def digit_run(folder: Path) -> Path:
    declare(folder, Classification, "examples")
    confusion = [[8, 2], [0, 10]]
    evaluation = {
        "step": 3,
        "eval/loss": 0.2,
        "eval/accuracy": 0.9,
        "eval/macro_f1": 0.899,
        "eval/confusion": confusion,
    }
    return metrics(folder, [training(step, 1.0 / step) for step in (1, 2, 3)] + [evaluation | {"step": 2}, evaluation])


def own_metrics_run(folder: Path, evaluations: int = 2) -> Path:
    """What an objective of the user's own adds, in training and evaluation."""
    records = [training(step, 1.0) | {"router_entropy": 0.5 * step} for step in (1, 2, 3)]
    more = [{"step": n + 1, "eval/loss": 1.0, "eval/f/beta": 0.125 * (n + 1)} for n in range(evaluations)]
    return metrics(folder, records + more)


def declare(folder: Path, objective: type[Objective], counts: str, data: type[DataConfig] = DataConfig) -> None:
    folder.mkdir(parents=True)
    declared.write(folder, declared.of(objective, data), counts, declared.compared(data))


def training(step: int, loss: float) -> dict:
    times = {"step_seconds": 0.5, "data_wait_seconds": 0.005, "tokens_per_second": 200.0}
    return {"step": step, "loss": loss, "learning_rate": 0.1, "grad_norm": 1.0 / step, "mfu": 0.4} | times


def metrics(folder: Path, records: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
