"""The formats in which a run can be exported, and what all formats share.

An export writes its folder completely or not at all. Every folder has a card (README.md) and a
script that uses it (use.py).
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bigmodel_jax.config import Config
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.export import card, gguf_file, huggingface, litert, onnx, orbax_folder, stablehlo
from bigmodel_jax.export.subject import Written
from bigmodel_jax.pretrained import labels
from bigmodel_jax.pretrained.transfer import whole_or_nothing, write_tokenizer

SCRIPTS = Path(__file__).parent / "use"


@dataclasses.dataclass(frozen=True)
class Format:
    """One export format.

    - write: write(config, run_dir, folder, which, **options) fills an empty folder. which: the
      checkpoint.
    - options: the options of the `export` verb that `write` takes.
    - about: a description of the folder for its card.
    - needs: the packages that its use.py imports.
    - script: the file of export/use that becomes use.py.
    - beside: whether `export` must add the tokenizer, class names and image settings because
      `write` does not.
    """

    write: Callable[..., Written]
    options: tuple[str, ...]
    about: str
    needs: tuple[str, ...]
    script: str
    beside: bool = True


FORMATS: dict[str, Format] = {
    "huggingface": Format(
        huggingface.write,
        ("dtype", "adapter", "kind"),
        "A folder of transformers: config.json, the weights as safetensors, the tokenizer.",
        ("transformers", "torch"),
        "huggingface.py",
        beside=False,
    ),
    "peft": Format(
        huggingface.write_adapters,
        ("dtype", "adapter"),
        "Adapters alone, as PEFT reads them beside their base.",
        ("peft", "transformers", "torch"),
        "peft.py",
        beside=False,
    ),
    "gguf": Format(
        gguf_file.write,
        ("kind", "adapter"),
        "One file for llama.cpp and what is built on it: weights, sizes, tokenizer and chat template.",
        ("llama-cpp-python",),
        "gguf.py",
        beside=False,
    ),
    "stablehlo": Format(
        stablehlo.write,
        ("dtype", "adapter", "batch", "length"),
        "Programs in StableHLO, which run on CPU, CUDA and TPU, and the weights that they take.",
        ("jax",),
        "stablehlo.py",
    ),
    "onnx": Format(
        onnx.write,
        ("adapter", "batch", "length"),
        "Programs in ONNX; signature.json says what each takes and gives, and how far from JAX it was on two sizes.",
        ("onnxruntime", "numpy"),
        "onnx.py",
    ),
    "litert": Format(
        litert.write,
        ("adapter", "batch", "length"),
        "Programs for LiteRT (TensorFlow Lite); signature.json says what each takes and gives, and how far from JAX it was.",
        ("ai-edge-litert", "numpy"),
        "litert.py",
    ),
    "orbax": Format(
        orbax_folder.write,
        ("dtype", "adapter"),
        "The tree of parameters as an Orbax checkpoint.",
        ("orbax-checkpoint", "jax"),
        "orbax.py",
    ),
}


def export(config: Config, run_dir: Path, target: Path, name: str, which: str, options: Mapping[str, Any]) -> Written:
    """Writes a run in the format `name` as the new folder `target`.

    which: the checkpoint; options: the verb's options that the user gave, by name. Raises a
    ValueError of one line for an option that the format does not take, for a folder that is not
    empty, and for a model that the format cannot hold. A folder that failed is deleted.
    """
    row = FORMATS[check_name(name)]
    if wrong := [option for option in options if option not in row.options]:
        takers = [other for other, format in FORMATS.items() if wrong[0] in format.options]
        raise ValueError(
            f"--{wrong[0]} = {options[wrong[0]]!r}: --format {name} takes no such option; it belongs to {', '.join(takers)}"
        )
    with whole_or_nothing(target, "export") as folder:
        written = row.write(config, run_dir, folder, which, **options)
        if row.beside:
            write_beside(config, run_dir, folder)
        shutil.copyfile(SCRIPTS / row.script, folder / "use.py")
        # The card lists all other files, so it is written last.
        card.write(folder, target.name, config, run_dir, written, about=row.about, needs=row.needs, name=name)
    return written


def write_beside(config: Config, run_dir: Path, folder: Path) -> None:
    """Copies the tokenizer, the image settings and the class names to the folder, as transformers
    has them.
    """
    write_tokenizer(run_dir, folder)
    if about := config.data.processor(run_dir):
        (folder / "preprocessor_config.json").write_text(json.dumps(about, indent=2) + "\n")
    if (run_dir / labels.KEPT).is_file():
        shutil.copyfile(run_dir / labels.KEPT, folder / labels.KEPT)


def check_name(name: str) -> str:
    """The name itself. Raises a ValueError of one line if no format has this name."""
    if name not in FORMATS:
        raise ValueError(f"--format = {name!r}{nearest(name, FORMATS)}; allowed: {', '.join(FORMATS)}")
    return name
