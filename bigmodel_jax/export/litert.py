"""Exports a run's model for LiteRT (TensorFlow Lite) with litert-converter, which needs no
TensorFlow.

The converter runs in an environment of its own. Each program is one .tflite file with its weights
inside, and LiteRT's interpreter checks it. signature.json lists each program's inputs. The layers
of a stack are unrolled, because the converter cannot write a loop.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax import export

from bigmodel_jax.config import Config
from bigmodel_jax.export import compared, converter_env, flat
from bigmodel_jax.export.flat import Flat
from bigmodel_jax.export.subject import Subject, Written, check_answers, open_subject
from bigmodel_jax.models.compute import StackCompute

SIGNATURE = "signature.json"
MOST_BYTES = 1 << 31  # the size limit of a .tflite file, whose offsets have 32 bits
OPTION = "export: --format litert"


def write(
    config: Config, run_dir: Path, folder: Path, which: str, *, adapter: str = "", batch: int = 0, length: int = 0
) -> Written:
    """Writes the programs and signature.json into `folder`.

    batch, length: as for StableHLO. Raises a ValueError of one line, which names the model and the
    operation, where the converter does not support it or its program gives other numbers.
    """
    check_answers(config, OPTION)
    converter = f"litert-converter {converter_env.version('litert', 'litert-converter')}"
    converter_env.ensure("litert")  # before the weights are read, so that a missing uv fails at once
    subject = unrolled(open_subject(config, run_dir, which=which, adapter=adapter), config)
    check_size(subject)
    plain, given, made = flat.plain(config, subject), (batch, length), {}
    with tempfile.TemporaryDirectory() as scratch:
        cases = Path(scratch)
        # The worker has no JAX, so it gets the inputs and JAX's outputs as files.
        for number, (name, case) in enumerate(flat.cases(subject, plain, given)):
            compared.save(case, cases, name, number)
        for name in flat.names(subject):
            program = flat.flat(flat.with_open_sizes(name, subject, given, plain), subject.weights)
            made[name] = _convert(name, subject, program, converter, cases, folder)
    about = {"model": subject.kind, "tolerance": compared.TOLERANCE, "programs": made}
    (folder / SIGNATURE).write_text(json.dumps(about, indent=1) + "\n")
    worst = max(about["difference"] for about in made.values())
    said = f"{subject.kind}: {', '.join(made)}, within {worst:.1e} of JAX on two sizes"
    return Written(f"{said}, by {converter} in {converter_env.folder('litert')}", subject.step)


def _convert(name: str, subject: Subject, program: Flat, converter: str, cases: Path, folder: Path) -> dict[str, Any]:
    """Writes one .tflite file in a process of its own, and returns the program's entry in
    signature.json.
    """
    fixed = all(isinstance(n, int) for x in program.inputs.values() for n in x.shape)
    try:
        lowered = export.export(jax.jit(program.fn), platforms=["cpu"])(*program.inputs.values())
    except Exception as error:  # an operation that needs a fixed size may raise any error while tracing
        wrong = {"operation": "", "where": compared.place(error), "said": compared.first_line(error)}
        compared.check(OPTION, converter, name, subject.kind, {"error": wrong}, fixed=fixed)
        raise
    text, file = cases / f"{name}.mlir", f"{name}.tflite"
    text.write_text(lowered.mlir_module())
    job = {"name": name, "program": str(text), "cases": str(cases), "file": str((folder / file).resolve())}
    job |= {"inputs": list(program.inputs), "outputs": program.outputs}
    found = converter_env.run("litert", "litert_worker", job)
    # The text holds all weights as constants, so the programs' texts are deleted one by one.
    text.unlink()
    compared.check(OPTION, converter, name, subject.kind, found, fixed=fixed)
    outputs = dict(zip(program.outputs, lowered.out_avals, strict=True))
    return {"file": file, "inputs": flat.texts(program.inputs), "outputs": flat.texts(outputs), **found}


def check_size(subject: Subject) -> None:
    """Raises a ValueError of one line for weights that are too large for a .tflite file."""
    size = sum(x.nbytes for x in subject.weights.values())
    if size >= MOST_BYTES:
        raise ValueError(
            f"{OPTION}: the weights of {subject.kind} are {size / 1e9:.1f} GB, and a .tflite file holds less than "
            f"{MOST_BYTES / 1e9:.1f} GB; --format onnx or stablehlo stores the weights in another file"
        )


def unrolled(subject: Subject, config: Config) -> Subject:
    """The subject with the stacks of layers of its model unrolled."""
    model = unrolled_config(subject.config)
    plain = flat.plain(config, subject._replace(config=model))
    return subject._replace(config=model, model=plain.make_model())


def unrolled_config(config: Any) -> Any:
    """The config with unrolled stacks of layers, in its towers as well."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, StackCompute):
            changes[field.name] = dataclasses.replace(value, unroll=True)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = unrolled_config(value)
    return dataclasses.replace(config, **changes)
