"""Exports a run's weights as a folder for transformers, or its adapters as a folder for PEFT."""

from pathlib import Path

from bigmodel_jax.config import Config
from bigmodel_jax.core.precision import Float
from bigmodel_jax.export.subject import Written
from bigmodel_jax.pretrained.adapter_transfer import export_adapters
from bigmodel_jax.pretrained.transfer import export_weights


def write(
    config: Config,
    run_dir: Path,
    folder: Path,
    which: str,
    *,
    dtype: Float = "float32",
    adapter: str = "",
    kind: str = "",
) -> Written:
    """Writes config.json, safetensors and the tokenizer, with adapters merged into the weights.

    kind: "nf4" or "int8" for bitsandbytes' quantised formats, "" for none.
    """
    family, step = export_weights(config, run_dir, folder, dtype=dtype, which=which, adapter=adapter, kind=kind)
    return Written(f"{family.architecture}, {f'{kind} (bitsandbytes) and ' if kind else ''}{dtype}", step)


def write_adapters(
    config: Config, run_dir: Path, folder: Path, which: str, *, dtype: Float = "float32", adapter: str = ""
) -> Written:
    """Writes adapter_config.json and adapter_model.safetensors."""
    family, step = export_adapters(config, run_dir, folder, dtype=dtype, which=which, adapter=adapter)
    return Written(f"adapters of {family.architecture}, {dtype}", step)
