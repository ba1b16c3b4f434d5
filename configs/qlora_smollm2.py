"""QLoRA of SmolLM2-135M-Instruct on conversations: `sft_smollm2.py` with adapters in bfloat16 beside a base in 4 bits.

The base's matrices are in normal floats whose scales are in 8 bits (arXiv:2305.14314), its table in bfloat16: a fifth of the
bytes of float32. Updates of bfloat16 weights are rounded by chance, so that small ones are not lost.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.bases import BaseConfig
from configs import sft_smollm2


def get_config() -> Config:
    base = sft_smollm2.get_config()
    return dataclasses.replace(
        base,
        adapters=Lora(rank=16, alpha=32.0, base=BaseConfig("nf4", double=True, tables="bfloat16")),
        optim=dataclasses.replace(base.optim, lr=2e-4),
        precision=Policy(param="bfloat16", compute="bfloat16", rounding="stochastic"),
    )
