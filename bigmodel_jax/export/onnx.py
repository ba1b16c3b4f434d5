"""A run's model as ONNX, by jax2onnx in an environment of its own, and checked there by ONNX Runtime.

Each program is one file; constants lie in weights.data, once for all of them. signature.json says what each takes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core.dataclass_json import to_json
from bigmodel_jax.export import converter_env, flat
from bigmodel_jax.export.subject import Written, open_subject
from bigmodel_jax.export.weights_file import save_weights

OPSET = 23
SIGNATURE = "signature.json"


def write(
    config: Config, run_dir: Path, folder: Path, which: str, *, adapter: str = "", batch: int = 0, length: int = 0
) -> Written:
    """Writes the programs and signature.json into `folder`.

    batch, length: as for StableHLO. ValueError, one line, names the model and the operation that has no such form, or a
    program that computes something else in ONNX Runtime.
    """
    subject = open_subject(config, run_dir, which=which, adapter=adapter)
    plain, given, wanted = flat.plain(config, subject), (batch, length), flat.names(subject)
    with tempfile.TemporaryDirectory() as scratch:
        weights, cases = Path(scratch) / "weights", Path(scratch) / "cases"
        weights.mkdir()
        cases.mkdir()
        save_weights(subject.weights, weights)
        for number, (name, case) in enumerate(flat.cases(subject, plain, given, wanted)):
            arrays = {f"in:{key}": x for key, x in case.inputs.items()}
            arrays |= {f"out:{key}": x for key, x in case.outputs.items()}
            np.savez(cases / f"{name}.{number}.npz", **arrays)
        job = {"config": to_json(plain), "programs": wanted, "opset": OPSET, "sizes": given}
        job |= {"weights": str(weights), "cases": str(cases), "folder": str(folder.resolve())}
        made = converter_env.run("onnx", "onnx_worker", job)
    check(made, subject.kind)
    about = {"model": subject.kind, "opset": OPSET, "tolerance": flat.TOLERANCE, "programs": made}
    (folder / SIGNATURE).write_text(json.dumps(about, indent=1) + "\n")
    return Written(said(made, subject.kind), subject.step)


def check(made: dict, kind: str) -> None:
    """ValueError, one line, where a program was not converted, or computes something else."""
    if wrong := made.get("error"):
        operation = wrong["operation"] or "an operation"
        at = f" ({wrong['where']})" if wrong["where"] else ""
        raise ValueError(
            f"export: --format onnx: the program {wrong['program']} of {kind} uses {operation}{at}, which jax2onnx "
            f"{converter_env.version('onnx', 'jax2onnx')} does not convert: {wrong['said']}"
        )
    for name, about in made.items():
        if not about["difference"] <= flat.TOLERANCE:
            raise ValueError(
                f"export: --format onnx: the program {name} of {kind} gives other numbers in ONNX Runtime: they differ "
                f"by {about['difference']:.1e}, more than {flat.TOLERANCE:.0e}"
            )


def said(made: dict, kind: str) -> str:
    worst = max(about["difference"] for about in made.values())
    by = f"jax2onnx {converter_env.version('onnx', 'jax2onnx')} in {converter_env.folder('onnx')}"
    return f"{kind}: {', '.join(made)}, opset {OPSET}, within {worst:.1e} of JAX on two sizes, by {by}"
