"""Exports a run's model as ONNX with jax2onnx, in an environment of its own.

ONNX Runtime checks each program there. Each program is one file. Large constants are in
weights.data, which all programs share. signature.json lists each program's inputs.
"""

import json
import tempfile
from pathlib import Path

from bigmodel_jax.config import Config
from bigmodel_jax.core.dataclass_json import to_json
from bigmodel_jax.export import compared, converter_env, flat
from bigmodel_jax.export.subject import Written, check_answers, open_subject
from bigmodel_jax.export.weights_file import save_weights

OPSET = 23
SIGNATURE = "signature.json"


def write(
    config: Config, run_dir: Path, folder: Path, which: str, *, adapter: str = "", batch: int = 0, length: int = 0
) -> Written:
    """Writes the programs and signature.json into `folder`.

    batch, length: as for StableHLO. Raises a ValueError of one line, which names the model and the
    operation, where the converter does not support it or its program gives other numbers.
    """
    check_answers(config, "export: --format onnx")
    converter = f"jax2onnx {converter_env.version('onnx', 'jax2onnx')}"
    converter_env.ensure("onnx")  # before the weights are read, so that a missing uv fails at once
    subject = open_subject(config, run_dir, which=which, adapter=adapter)
    plain, given = flat.plain(config, subject), (batch, length)
    with tempfile.TemporaryDirectory() as scratch:
        weights, cases = Path(scratch) / "weights", Path(scratch) / "cases"
        weights.mkdir()
        cases.mkdir()
        save_weights(subject.weights, weights)
        for number, (name, case) in enumerate(flat.cases(subject, plain, given)):
            compared.save(case, cases, name, number)
        job = {"config": to_json(plain), "programs": flat.names(subject), "opset": OPSET, "sizes": given}
        job |= {"weights": str(weights), "cases": str(cases), "folder": str(folder.resolve())}
        made = converter_env.run("onnx", "onnx_worker", job)
    for name, about in made.items():
        compared.check("export: --format onnx", converter, name, subject.kind, about, fixed=all(given))
    about = {"model": subject.kind, "opset": OPSET, "tolerance": compared.TOLERANCE, "programs": made}
    (folder / SIGNATURE).write_text(json.dumps(about, indent=1) + "\n")
    worst = max(about["difference"] for about in made.values())
    said = f"{subject.kind}: {', '.join(made)}, opset {OPSET}, within {worst:.1e} of JAX on two sizes"
    return Written(f"{said}, by {converter} in {converter_env.folder('onnx')}", subject.step)
