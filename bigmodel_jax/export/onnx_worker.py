"""The worker in the converter's environment: converts a model's programs to ONNX.

ONNX Runtime then checks each program. `onnx.py` starts the worker as `python -m
bigmodel_jax.export.onnx_worker JOB ANSWER`, with two JSON files.
"""

import functools
import hashlib
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax._src.core as internal
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

# jax2onnx 0.17.1 reads ClosedJaxpr from jax._src.core, where JAX 0.12 no longer has it.
internal.ClosedJaxpr = jax.extend.core.ClosedJaxpr

import jax2onnx  # noqa: E402 - after the line above
from jax2onnx.plugins.flax.linen.max_pool import MaxPoolPlugin  # noqa: E402

from bigmodel_jax.core import dataclass_json  # noqa: E402
from bigmodel_jax.export import compared, flat  # noqa: E402
from bigmodel_jax.export.compared import Table  # noqa: E402
from bigmodel_jax.export.subject import Subject  # noqa: E402

APART = 1 << 10  # constants of at least this many bytes go to weights.data, which all programs share
DATA = "weights.data"


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Converts and checks all programs. Returns {program: its entry in signature.json, or its
    error}. The first conversion that fails ends the work, and its error alone is returned.
    """
    config = dataclass_json.from_json(job["config"])
    weights = {name: jnp.asarray(x) for name, x in _weights(Path(job["weights"]))}
    subject = Subject(config.model, config.make_model(), weights, 0)
    made = {}
    with Stored(Path(job["folder"]) / DATA) as stored:
        for name in job["programs"]:
            try:
                made[name] = _convert(name, subject, config, job, stored)
            except Exception as error:  # the converter raises various errors for unknown operations
                return {name: {"error": described(error)}}
    # Checks follow after `stored` is closed, since ONNX Runtime reads the constants from its file.
    for name, about in made.items():
        try:
            call = _caller(Path(job["folder"]) / about["file"])
            about["difference"] = compared.worst(Path(job["cases"]), name, call)
        except Exception as error:  # the converter may write an operation that the runtime lacks
            about["error"] = described(error)
    return made


def _weights(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for file in sorted(folder.glob("weights*.safetensors")):
        yield from load_file(file).items()


class Stored:
    """A file of constants that stores equal bytes only once."""

    def __init__(self, path: Path):
        self._path, self._places = path, {}

    def __enter__(self) -> "Stored":
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def move(self, tensor: onnx.TensorProto) -> None:
        """Moves the tensor's bytes to the file. The tensor then refers to their place in it."""
        raw = tensor.raw_data
        key = hashlib.sha256(raw).digest()
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % 64))  # pads the file to a multiple of 64 bytes
            self._places[key] = self._file.tell()
            self._file.write(raw)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for name, value in (("location", self._path.name), ("offset", self._places[key]), ("length", len(raw))):
            tensor.external_data.add(key=name, value=str(value))


def _convert(name: str, subject: Subject, config: Any, job: dict, stored: Stored) -> dict[str, Any]:
    program = flat.with_open_sizes(name, subject, tuple(job["sizes"]), config)
    made = flat.flat(program, subject.weights)
    outputs = jax.eval_shape(made.fn, *made.inputs.values())
    proto = jax2onnx.to_onnx(
        made.fn,
        list(made.inputs.values()),
        model_name=f"{subject.kind} {name}",
        opset=job["opset"],
        input_names=list(made.inputs),
        output_names=made.outputs,
    )
    _name_sizes(proto.graph.output, outputs)
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) >= APART:
            stored.move(tensor)
    (Path(job["folder"]) / f"{name}.onnx").write_bytes(proto.SerializeToString())
    return {
        "file": f"{name}.onnx",
        "inputs": flat.texts(made.inputs),
        "outputs": flat.texts(dict(zip(made.outputs, outputs, strict=True))),
    }


def _name_sizes(declared: Any, shapes: list) -> None:
    """Writes our known shapes into the types of the outputs.

    Without this the sizes of loops' outputs would stay open in the files of jax2onnx.
    """
    for value, x in zip(declared, shapes, strict=True):
        dims = value.type.tensor_type.shape
        dims.ClearField("dim")
        for n in x.shape:
            dims.dim.add(**({"dim_value": n} if isinstance(n, int) else {"dim_param": str(n)}))


def _caller(file: Path) -> Callable[[Table], Table]:
    """A function that runs the program in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))


def max_pool(pooled, x, window_shape, strides=None, padding="VALID"):
    """flax.linen.max_pool by way of the converter's `pooled`.

    The converter does not support padding given as numbers, so the padding is added here with
    jnp.pad.
    """
    if not isinstance(padding, str):
        # Padding with the smallest number never changes a maximum.
        sides = ((0, 0), *padding, (0, 0))
        x, padding = jnp.pad(x, sides, constant_values=jnp.finfo(x.dtype).min), "VALID"
    return pooled(x, window_shape=window_shape, strides=strides, padding=padding)


def described(error: Exception) -> dict[str, str]:
    """The operation at which a conversion failed, its place in the model, and the error's first
    line.
    """
    operation = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        primitive = getattr(frame.f_locals.get("eqn"), "primitive", None)
        operation = getattr(primitive, "name", operation)
    # This is how ONNX Runtime's errors name an operation.
    if found := re.search(r"(?:implementation for |Optype \(|operator \()(\w+)", str(error)):
        operation = found[1]
    return {"operation": operation, "where": compared.place(error), "said": compared.first_line(error)}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    own = MaxPoolPlugin._make_patch.__func__
    MaxPoolPlugin._make_patch = classmethod(lambda cls, flax: functools.partial(max_pool, own(cls, flax)))
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
