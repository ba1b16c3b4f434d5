"""Five training steps of small models on this machine's GPU against the same steps on its CPU.

    uv run --extra gpu python benchmarks/gpu_losses.py [CASE ...]

It prints a JSON object per line: the largest relative difference of the five losses, and of the
five gradient norms. The GPU computes float32 with full-precision products, unless the case says
otherwise; the CPU always does.
"""

import dataclasses
import functools
import json
import os
import sys

# Only numbers matter here, not speed; autotuning full-precision products would take longer than all
# the rest.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
)

import jax
import numpy as np
from gpu_settings import random_batch

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData, MaskedTextData, TextData
from bigmodel_jax.models import BertConfig, Compute, LlamaConfig, MixtralConfig, ViTConfig, compute
from bigmodel_jax.objectives import Classification, MaskedLanguageModel, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

STEPS, ROWS = 5, 16
WIDE = {"embed_dim": 128, "num_heads": 4, "mlp_dim": 256}
DECODER = WIDE | {"vocab_size": 512, "num_kv_heads": 2, "head_dim": 64, "max_seq_len": 512}
LLAMA = dataclasses.replace(LlamaConfig.tiny(), **DECODER)
MIXTRAL = dataclasses.replace(MixtralConfig.tiny(), **DECODER)
BERT = dataclasses.replace(BertConfig.tiny(), **WIDE, vocab_size=512, max_seq_len=128)
VIT = dataclasses.replace(ViTConfig.tiny(), **WIDE)
TEXT, MASKED = TextData(seq_len=128), MaskedTextData(seq_len=128)
HALF = Policy(compute="bfloat16")

# {name: (model, objective, data, changes of the parallel config, precision)}
CASES = {
    "llama": (LLAMA, NextToken(), TEXT, {}, Policy()),
    "mixtral, dropless": (MIXTRAL, NextToken(), TEXT, {}, Policy()),
    "mixtral, capacity": (dataclasses.replace(MIXTRAL, capacity_factor=1.25), NextToken(), TEXT, {}, Policy()),
    "bert": (BERT, MaskedLanguageModel(), MASKED, {}, Policy()),
    "vit": (VIT, Classification(), ImageData(), {}, Policy()),
    "llama, deterministic": (LLAMA, NextToken(), TEXT, {"deterministic": True}, Policy()),
    "llama, offload_optimizer": (LLAMA, NextToken(), TEXT, {"offload_optimizer": True}, Policy()),
    **{
        f"llama, remat {remat}": (
            dataclasses.replace(LLAMA, compute=Compute(remat=remat)),
            NextToken(),
            TEXT,
            {},
            Policy(),
        )
        for remat in ("full", "dots", "offload_input", "offload_attn", "offload_qkv_attn")
    },
    "llama, blocks of logits": (LLAMA, NextToken(logits="blocks"), TEXT, {}, Policy()),
    "llama, bfloat16, cudnn": (LLAMA, NextToken(), TextData(seq_len=512), {}, HALF),
    "llama, bfloat16, int8": (LLAMA, NextToken(), TEXT, {}, Policy(compute="bfloat16", matmul="int8")),
    "llama, bfloat16, float8": (LLAMA, NextToken(), TEXT, {}, Policy(compute="bfloat16", matmul="float8")),
    "mixtral, bfloat16": (MIXTRAL, NextToken(), TEXT, {}, HALF),
}


def config_of(name: str) -> Config:
    model, objective, data, parallel, precision = CASES[name]
    return Config(
        model=model,
        objective=objective,
        data=data,
        # A large eps, because a gradient that is zero except for rounding must not become a
        # full-size step.
        optim=OptimConfig(lr=1e-2, clip=0.5, eps=1e-4),
        parallel=ParallelConfig(**parallel),
        train=TrainConfig(steps=STEPS, batch_size=ROWS),
        precision=precision,
    )


def run(config: Config, device: jax.Device) -> np.ndarray:
    """(STEPS, 2): loss and gradient norm of each step on one batch."""
    mesh = sharding.make_mesh(config.parallel, [device])
    state, step, found = init_state(config, mesh), make_train_step(config, mesh), []
    batch = random_batch(config, mesh)
    for _ in range(STEPS):
        state, sums = step(state, batch)
        found.append([float(sums[name].compute()) for name in ("loss", "grad_norm")])
    return np.array(found)


@functools.cache
def on_cpu(config: Config) -> np.ndarray:
    return run(config, jax.local_devices(backend="cpu")[0])


def definition(config: Config) -> Config:
    """The config to compare with: float32, without remat and offloading."""
    return dataclasses.replace(config, model=compute.reset(config.model), parallel=ParallelConfig(), precision=Policy())


def compare(name: str) -> dict:
    config = config_of(name)
    reference = on_cpu(definition(config))
    try:
        found = run(config, jax.devices()[0])
    except Exception as error:  # a case that fails must not hide the others
        return {"case": name, "error": f"{type(error).__name__}: {error}"[:600]}
    loss, norm = np.max(np.abs(found / reference - 1), axis=0).tolist()
    return {"case": name, "loss": loss, "grad_norm": norm, "first and last": [*found[0], *found[-1]]}


def main(names: list[str]) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    for name in names or CASES:
        print(json.dumps(compare(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
