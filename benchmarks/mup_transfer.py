"""Whether a narrow decoder's best learning rate is also a wide one's, with and without muP.

    python benchmarks/mup_transfer.py --output mup_transfer [--widths 64 256] [--steps 150]

Each run is a decoder of 2 layers on bytes of the presidential addresses, with 512 tokens a step,
AdamW, warm-up and cosine decay. Initial values have a standard deviation of 1 / sqrt(width)
(LeCun). A run's figure is the mean training loss of its last 20 steps, on text that it has not seen
before. The folder OUTPUT gets the table, a record of each run, and mup_transfer.png. A run whose
record exists is not repeated.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData, Tfds, TokenizerConfig, make_iterator
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.mup import MupConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.report.plot_style import LIGHT
from bigmodel_jax.report.width_plots import transfer
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

RATES = tuple(2.0**-n for n in range(10, 3, -1))
BASE = 64
LAST = 20  # number of last steps whose losses are averaged


def sizes(width: int) -> dict[str, int]:
    return {"embed_dim": width, "num_heads": width // 16, "num_kv_heads": width // 16, "mlp_dim": 3 * width}


def config(width: int, rate: float, form: str, steps: int) -> Config:
    base = tuple(f"{name}={size}" for name, size in sizes(BASE).items())
    std = (BASE if form == "mup" else width) ** -0.5  # LeCun's; under muP that of the base width
    return Config(
        LlamaConfig(vocab_size=256, num_layers=2, head_dim=16, max_seq_len=64, init_std=std, **sizes(width)),
        NextToken(),
        TextData(source=Tfds("sotu"), tokenizer=TokenizerConfig(kind="bytes", vocab_size=256), seq_len=64),
        OptimConfig(lr=rate, warmup_steps=10, weight_decay=0.0, final_lr_ratio=0.0),
        ParallelConfig(data=1),
        TrainConfig(steps=steps, batch_size=8),
        mup=MupConfig(base if form == "mup" else ()),
    )


def loss(cfg: Config) -> float:
    """The mean loss over the last steps, in nats per byte."""
    mesh = sharding.make_mesh(cfg.parallel, jax.devices()[:1])
    state, step = init_state(cfg, mesh), make_train_step(cfg, mesh)
    batches = make_iterator(cfg.data, batch_size=cfg.train.batch_size, seed=0, rules=cfg.parallel.rules, mesh=mesh)
    losses = []
    for _ in range(cfg.train.steps):
        state, sums = step(state, next(batches))
        losses.append(sums["loss"])
    return float(np.mean([mean.compute() for mean in losses[-LAST:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    known = {tuple(r[k] for k in ("form", "width", "rate", "steps")): r["loss"] for r in map(json.loads, lines)}
    for width in args.widths:
        for rate in RATES:
            for form in ("standard", "mup"):
                key = ("standard" if width == BASE else form, width, rate, args.steps)  # one model at this width
                if key not in known:
                    known[key] = loss(config(width, rate, key[0], args.steps))
                    record = dict(zip(("form", "width", "rate", "steps"), key, strict=True)) | {"loss": known[key]}
                    with path.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                print(f"{form:10} {width:5} {rate:.3g} {known[key]:.4f}", flush=True)
                known[form, width, rate, args.steps] = known[key]
    curves = {
        form: {w: [(rate, known[form, w, rate, args.steps]) for rate in RATES] for w in args.widths}
        for form in ("standard", "mup")
    }
    for form, by_width in curves.items():
        best = ", ".join(f"{w}: {min(points, key=lambda p: p[1])[0]:.3g}" for w, points in by_width.items())
        print(f"best rates, {form}: {best}")
    (args.output / "mup_transfer.png").write_bytes(transfer(curves, LIGHT))


if __name__ == "__main__":
    main()
