"""A tiny student distilled from a teacher, beside the same student trained alone, on equal tokens.

    uv run benchmarks/distillation.py [--teacher_steps 400] [--steps 300] [--seeds 3]
        [--alpha 0.5] [--temperature 1.0]

The teacher is configs/lm_tiny.py with a vocabulary of 2,048 (1.6 M parameters), trained for
`teacher_steps`. The student has one layer of width 64, and the same tokenizer and text. It prints
the held-out loss of each run in nats per token, and the seconds of each run.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from bigmodel_jax import runtime
from bigmodel_jax.config import Config, EvalConfig, ReportConfig
from bigmodel_jax.objectives import Distillation, NextToken
from bigmodel_jax.training.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
import lm_tiny

VOCAB_SIZE = 2048


def teacher(steps: int) -> Config:
    base = lm_tiny.get_config()
    source = dataclasses.replace(base.data.source, eval_split="validation[:20%]")
    tokenizer = dataclasses.replace(base.data.tokenizer, vocab_size=VOCAB_SIZE)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, vocab_size=VOCAB_SIZE),
        data=dataclasses.replace(base.data, source=source, tokenizer=tokenizer),
        train=dataclasses.replace(base.train, steps=steps),
        eval=EvalConfig(batch_size=32, baselines=False),
        report=ReportConfig(tensorboard=False),
    )


def student(base: Config, objective: NextToken, steps: int, seed: int) -> Config:
    small = {"num_layers": 1, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "mlp_dim": 192}
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, **small, init_std=0.1, tied_embeddings=True),
        objective=objective,
        optim=dataclasses.replace(base.optim, warmup_steps=30),
        train=dataclasses.replace(base.train, steps=steps, seed=seed),
    )


def measure(config: Config, folder: Path) -> tuple[float, float]:
    """Trains a run: (held-out loss, seconds)."""
    began = time.perf_counter()
    return train(config, folder)["eval/loss"], time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("teacher_steps", 400), ("steps", 300), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--runs", type=Path, help="where the runs lie; default: a folder that is removed")
    args = parser.parse_args()
    runtime.keep_memory()
    runtime.keep_programs()
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or Path(scratch)
        base = teacher(args.teacher_steps)
        loss, seconds = measure(base, runs / "teacher")
        print(f"teacher, {args.teacher_steps} steps: {loss:.4f} nats per token, {seconds:.0f} s", flush=True)
        taught = Distillation(
            teacher=str(runs / "teacher"), teacher_dtype="float32", alpha=args.alpha, temperature=args.temperature
        )
        found = {"alone": [], "taught": []}
        for seed in range(args.seeds):
            for name, objective in (("alone", NextToken()), ("taught", taught)):
                config = student(base, objective, args.steps, seed)
                loss, seconds = measure(config, runs / f"{name}_{seed}")
                found[name].append(loss)
                print(f"student {name:6} seed {seed}: {loss:.4f} nats per token, {seconds:.0f} s", flush=True)
    means = {name: sum(losses) / len(losses) for name, losses in found.items()}
    less = sum(b < a for a, b in zip(found["alone"], found["taught"], strict=True))
    print(f"mean of {args.seeds} seeds: alone {means['alone']:.4f}, taught {means['taught']:.4f}; lower in {less}")


if __name__ == "__main__":
    main()
