"""Held-out sums answered exactly: before GRPO, after it, and after it with permuted rewards.

    python benchmarks/grpo_arithmetic.py [--seeds 3] [--steps 300] [--folder runs/grpo_arithmetic]

Permuted rewards say nothing about the answers, so a gain with them is not an effect of the reward.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.training.run import train

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Permuted(PolicyGradient):
    """Policy gradients in which each answer gets the reward of another answer of its batch."""

    def advantages(self, rewards):
        permuted = np.random.default_rng(rewards.astype(np.int64).reshape(-1)).permutation(rewards.reshape(-1))
        return super().advantages(permuted.reshape(rewards.shape))


def changed(config: Config, **parts) -> Config:
    return dataclasses.replace(config, **{k: dataclasses.replace(getattr(config, k), **v) for k, v in parts.items()})


def rewards(run_dir: Path) -> list[float]:
    """The reward of every evaluation of a run, in order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["eval/reward"] for line in lines if "eval/reward" in line]


def teach(folder: Path) -> Config:
    """Trains the start model by examples, and returns the GRPO config; all seeds share this
    model."""
    taught = folder / "taught"
    train(config_file.load(CONFIGS / "arithmetic_tiny.py"), taught)
    base = config_file.load(CONFIGS / "grpo_arithmetic.py")
    return changed(base, data={"tokenizer_path": str(taught / "tokenizer.json")}, train={"init_from": str(taught)})


def one_seed(base: Config, folder: Path, seed: int, steps: int) -> tuple[float, float, float, float]:
    """(share right before, after GRPO, after GRPO with permuted rewards, seconds of GRPO)."""
    base = changed(base, train={"seed": seed, "steps": steps})
    # One step with a negligible learning rate, so that the start is evaluated exactly as the end.
    start = changed(base, train={"steps": 1}, optim={"lr": 1e-12, "warmup_steps": 0})
    train(start, folder / f"start_{seed}")
    began = time.perf_counter()
    train(base, folder / f"grpo_{seed}")
    seconds = time.perf_counter() - began
    permuted = dataclasses.replace(base, objective=Permuted(**vars(base.objective)))
    train(permuted, folder / f"permuted_{seed}")
    last = (rewards(folder / f"{name}_{seed}")[-1] for name in ("start", "grpo", "permuted"))
    return *last, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("runs/grpo_arithmetic"))
    args = parser.parse_args()
    print("| seed | before | GRPO | permuted rewards | seconds of GRPO |\n| --- | --- | --- | --- | --- |")
    base, found = teach(args.folder), []
    for seed in range(args.seeds):
        found.append(one_seed(base, args.folder, seed, args.steps))
        print(f"| {seed} | {' | '.join(f'{100 * x:.1f} %' for x in found[-1][:3])} | {found[-1][3]:.0f} |", flush=True)
    before, after, permuted, seconds = (statistics.mean(column) for column in zip(*found, strict=True))
    print(f"| mean | {100 * before:.1f} % | {100 * after:.1f} % | {100 * permuted:.1f} % | {seconds:.0f} |")
    print(f"gain {100 * (after - before):.1f} points; with permuted rewards {100 * (permuted - before):.1f}")


if __name__ == "__main__":
    main()
