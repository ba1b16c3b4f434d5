"""The settings that `gpu.py` measures: configs that fill one 80 GB GPU, with random batches.

    uv run --extra plan --extra plan-gpu python benchmarks/gpu_settings.py [NAME ...]

It plans each setting for h100:1x1x1, without a GPU, and writes runs/gpu/<name>/config.json and
plan.json.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.data import ImageData, MaskedTextData, TextData, Tfds, fields
from bigmodel_jax.models import Compute, MixtralConfig, bert, llama, vit
from bigmodel_jax.objectives import Classification, MaskedLanguageModel, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.pretrained.llama import LLAMA as LLAMA_FAMILY

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "gpu"
GIB = 2.0**30
LLAMA = llama.PRESETS["llama-3.2-1b"]  # 1.24 B parameters
# 0.84 B parameters, of which 0.31 B are active per token.
MIXTRAL = MixtralConfig(
    num_layers=8, embed_dim=1024, num_heads=16, num_kv_heads=4, head_dim=64, mlp_dim=3584, max_seq_len=4096
)


def decoder(model, rows: int, seq_len: int = 4096, matmul: str = "compute", **changes) -> Config:
    return setting(dataclasses.replace(model, **changes), NextToken(), TextData(seq_len=seq_len), rows, matmul)


def setting(model, objective, data, rows: int, matmul: str = "compute") -> Config:
    return Config(
        model=model,
        objective=objective,
        data=data,
        optim=OptimConfig(lr=1e-4),
        train=TrainConfig(batch_size=rows),
        precision=Policy(compute="bfloat16", matmul=matmul),
    )


SETTINGS = {
    "llama_1b": decoder(LLAMA, 4),
    "llama_1b_unroll": decoder(LLAMA, 4, compute=Compute(unroll=True)),
    "llama_1b_8rows": decoder(LLAMA, 8),
    "llama_1b_full": decoder(LLAMA, 16, compute=Compute(remat="full")),
    "llama_1b_float8": decoder(LLAMA, 4, matmul="float8"),
    "llama_1b_int8": decoder(LLAMA, 4, matmul="int8"),
    "mixtral": decoder(MIXTRAL, 8),
    "mixtral_capacity": decoder(MIXTRAL, 8, capacity_factor=1.25),
    "bert_large": setting(
        bert.PRESETS["bert-large-uncased"], MaskedLanguageModel(), MaskedTextData(seq_len=512), rows=64
    ),
    "vit_l16": setting(
        vit.PRESETS["vit-l/16"],
        Classification(),
        ImageData(source=Tfds("imagenet2012"), num_classes=1000),
        rows=192,
    ),
    "tiny": decoder(llama.LlamaConfig.tiny(), 2, 32),  # a small one, to try the scripts
}


def random_batch(config: Config, mesh: jax.sharding.Mesh, seed: int = 0) -> dict[str, jax.Array]:
    """A random batch with the config's shapes on the mesh; each row is one document."""
    rng, rows = np.random.default_rng(seed), config.train.batch_size

    def one(name, shape, dtype):
        whole = (rows, *shape)
        if name in ("segment_ids", "weights"):
            return np.ones(whole, dtype)
        if name == "positions":
            return np.broadcast_to(np.arange(shape[0], dtype=dtype), whole)
        if dtype == "float32":
            return rng.random(whole, np.float32)
        return rng.integers(0, getattr(config.model, "vocab_size", 0) or config.model.num_classes, whole).astype(dtype)

    row = fields.complete(config.data, config.model.inputs())
    arrays = {name: one(name, field.shape, field.dtype) for name, field in row.items()}
    place = {name: sharding.batch_sharding(mesh, config.parallel.rules, field.axes) for name, field in row.items()}
    return {name: jax.device_put(x, place[name]) for name, x in arrays.items()}


def save(name: str) -> Path:
    """The setting's folder with its config and, for a Llama, with a config.json for
    transformers."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    config_file.save(SETTINGS[name], folder / "config.json")
    if isinstance(SETTINGS[name].model, llama.LlamaConfig):
        (folder / "transformers.json").write_text(json.dumps(LLAMA_FAMILY.to_hf(SETTINGS[name].model)))
    return folder


def main(names: list[str]) -> None:
    for name in names or [n for n in SETTINGS if n != "tiny"]:
        folder = save(name)
        command = ("launch.py", "plan", str(folder / "config.json"), "--topology", "h100:1x1x1")
        subprocess.run([sys.executable, *command, "--output", str(folder)], cwd=ROOT)
        plan = json.loads((folder / "plan.json").read_text())
        print(name, plan["fits"], plan["memory"], {k: plan.get(k) for k in ("step_seconds", "mfu", "mfu_bound")})


if __name__ == "__main__":
    main(sys.argv[1:])
