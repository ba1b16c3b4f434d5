"""Memory of adapters on SmolLM2-135M: bytes of the base by storage, and the compiler's step sizes.

    uv run python benchmarks/adapters_memory.py [--run runs/smollm2-135m-instruct --text FILE]

The first table counts the bytes of the parameter tree. The second one compiles the train step for
one CPU device without making weights, and shows the compiler's sizes of arguments and temporaries.
With an imported run, the first table also has the loss on the first 512 tokens of a text, for the
float32 weights and for each storage.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Tree
from bigmodel_jax.core.precision import Policy, cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import stored
from bigmodel_jax.data import TextData
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer
from bigmodel_jax.models.adapters import AdapterConfig, Lora
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.plan.worker import abstract_batch
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.state import abstract_constants, abstract_state
from bigmodel_jax.training.step import make_train_step

MODEL = PRESETS["smollm2-135m"]
LENGTH, TOKENS, MIB = 256, 512, 2.0**20
BASES = {
    "float32": BaseConfig(),
    "bfloat16": BaseConfig("bfloat16", tables="bfloat16"),
    "int8, scales doubled": BaseConfig("int8", double=True, tables="bfloat16"),
    "int4, scales doubled": BaseConfig("int4", double=True, tables="bfloat16"),
    "nf4": BaseConfig("nf4", tables="bfloat16"),
    "nf4, scales doubled": BaseConfig("nf4", double=True, tables="bfloat16"),
}
FLOAT32, BFLOAT16 = Policy(), Policy("bfloat16", "bfloat16", rounding="stochastic")
STEPS = {
    "all weights, float32": (AdapterConfig(), FLOAT32),
    "LoRA, base in float32": (Lora(rank=16), FLOAT32),
    "LoRA, base in bfloat16": (Lora(rank=16, base=BASES["bfloat16"]), BFLOAT16),
    "QLoRA, nf4, scales doubled": (Lora(rank=16, base=BASES["nf4, scales doubled"]), BFLOAT16),
}


def size(tree: Tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def bases(losses: dict[str, float]) -> Table:
    table = Table("base", "MB", "of float32", "its matrices", "loss", title="The base of SmolLM2-135M")
    spec = MODEL.make().spec
    full = params.paths(params.abstract(spec))
    for name, base in BASES.items():
        found = params.paths(params.abstract(base.freeze(spec)))
        packed = [path for path, node in found.items() if stored(node)]
        whole, matrices = (
            size(found) / size(full),
            size([found[p] for p in packed]) / max(size([full[p] for p in packed]), 1),
        )
        loss = f"{losses[name]:.4f}" if name in losses else "-"
        table.add_row(name, f"{size(found) / 1e6:.1f}", f"{whole:.4f}", f"{matrices:.4f}" if packed else "-", loss)
    return table


def step_memory(adapters: AdapterConfig, precision: Policy, rows: int) -> tuple[int, int]:
    """(bytes of arguments, bytes of temporaries) of a train step."""
    train, parallel = TrainConfig(batch_size=rows), ParallelConfig(data=1)
    config = Config(MODEL, NextToken(), TextData(seq_len=LENGTH), train=train, parallel=parallel)
    config = dataclasses.replace(config, adapters=adapters, precision=precision)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    args = abstract_state(config, mesh), abstract_batch(config, mesh), abstract_constants(config, mesh)
    usage = make_train_step(config, mesh).lower(*args).compile().memory_analysis()
    return usage.argument_size_in_bytes, usage.temp_size_in_bytes


def steps() -> Table:
    heads = ("arguments MiB", "of all weights'", "temporaries MiB, 4 rows", "8 rows")
    table = Table("step", *heads, title=f"A step of rows of {LENGTH} tokens, by the compiler")
    first = 0
    for name, how in STEPS.items():
        (arguments, four), (_, eight) = (step_memory(*how, rows) for rows in (4, 8))
        first = first or arguments
        table.add_row(
            name, f"{arguments / MIB:.1f}", f"{arguments / first:.3f}", f"{four / MIB:.0f}", f"{eight / MIB:.0f}"
        )
    return table


def text_losses(run: Path, text: Path) -> dict[str, float]:
    """{base: nats per token on the text}, computed in float32."""
    config = config_file.load(run)
    mesh = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    ids = load_tokenizer(run / "tokenizer.json").encode(text.read_text())[: TOKENS + 1]
    ids = jnp.asarray(ids, jnp.int32).reshape(1, -1)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": jnp.ones(ids[:, 1:].shape)}
    model = config.model.make()

    def loss(weights: Any) -> jax.Array:
        mean = NextToken().loss(model, cast(weights, "float32"), batch, rng=None, train=False).mean
        return mean.total / mean.count

    with sharding.use(mesh, config.parallel.rules):
        weights = params.paths(load_weights(config, run, mesh)[0])
        found = {}
        for name, base in BASES.items():
            spec = params.paths(base.freeze(model.spec))
            tree = {path: spec[path].storage.pack(x.astype(spec[path].dtype)) for path, x in weights.items()}
            found[name] = float(jax.jit(loss)(params.from_paths(tree)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    losses = text_losses(args.run, args.text) if args.run and args.text else {}
    console = Console()
    console.print(bases(losses))
    console.print(steps())


if __name__ == "__main__":
    main()
