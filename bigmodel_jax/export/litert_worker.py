"""The worker in the converter's environment: converts a StableHLO program to a .tflite file.

LiteRT's interpreter then checks the file. `litert.py` starts the worker as `python -m
bigmodel_jax.export.litert_worker JOB ANSWER`, with two JSON files. JAX is not installed here.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter
from litert_converter.mlir import ir, passmanager
from litert_converter.mlir._mlir_libs import converter_api_ext

from bigmodel_jax.export import compared
from bigmodel_jax.export.compared import Table

NAME = "serving_default"
FOREIGN = ("stablehlo.", "chlo.", "mhlo.", "shape.")  # dialects that a .tflite file cannot hold
# A .tflite file can hold this operation, although it is of a foreign dialect.
HELD = ("stablehlo.composite",)
LOOP = "tfl.while"  # the converter produces this operation but cannot write it to a file


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Does one job and returns the answer: {"difference": ...} or {"error": ...}."""
    file, context, converted = Path(job["file"]), ir.Context(), False
    converter_api_ext.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(Path(job["program"]).read_bytes())
        try:
            _convert(module, job["inputs"], job["outputs"])
            converted = True
            file.write_bytes(converter_api_ext.export_flatbuffer_to_bytes(module.operation))
            return {"difference": compared.worst(Path(job["cases"]), job["name"], _caller(file))}
        except Exception as error:  # converter and interpreter raise various errors for unknown operations
            # Passes that fail leave operations behind that they would have converted.
            operation = _named(str(error)) or ", ".join(_unwritten(module) if converted else ())
            return {"error": {"operation": operation, "where": "", "said": compared.first_line(error)}}


def _convert(module: ir.Module, inputs: list[str], outputs: list[str]) -> None:
    converter_api_ext.set_signature(module.operation, NAME, inputs, outputs)
    config = converter_api_ext.ConvertToTFLConfig()
    config.model_origin_framework = "JAX"
    converter_api_ext.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)


def _caller(file: Path) -> Callable[[Table], Table]:
    """A function that runs the program in LiteRT's interpreter."""
    runner = Interpreter(model_path=str(file)).get_signature_runner(NAME)
    return lambda inputs: runner(**inputs)


def _unwritten(module: ir.Module) -> list[str]:
    """The operations that the passes did not convert, and loops, which cannot be written.

    The list is empty where the file could be written.
    """
    found: set[str] = set()

    def see(operation: Any) -> None:
        # The passes call operations that they do not know by name.
        target = operation.attributes["call_target_name"] if operation.name == "vhlo.custom_call_v1" else operation.name
        found.add(str(target).removeprefix('#vhlo.string_v1<"').removesuffix('">'))
        for region in operation.regions:
            for block in region:
                for inside in block:
                    see(inside.operation)

    see(module.operation)
    return sorted(name for name in found if name == LOOP or (name.startswith(FOREIGN) and name not in HELD))


def _named(text: str) -> str:
    """The operation that an error message names, or ""."""
    found = re.search(r"STABLEHLO_\w+|(?:stablehlo|chlo|tfl|mhlo)\.\w+", text)
    return found[0] if found else ""


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
