"""QLoRA of SmolLM2-135M-Instruct: `lora_smollm2.py` with bfloat16 adapters beside a 4-bit base.

The base's matrices are NF4 with scales in 8 bits (arXiv:2305.14314), and its embedding table is
bfloat16. Together they take a fifth of the bytes of float32. Updates of bfloat16 weights are
rounded stochastically, so that small ones are not lost.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.models.bases import BaseConfig
from configs import lora_smollm2


def get_config() -> Config:
    base = lora_smollm2.get_config()
    return dataclasses.replace(
        base,
        adapters=dataclasses.replace(base.adapters, base=BaseConfig("nf4", double=True, tables="bfloat16")),
        precision=Policy(param="bfloat16", compute="bfloat16", rounding="stochastic"),
    )
