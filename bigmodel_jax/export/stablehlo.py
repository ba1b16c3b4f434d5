"""Exports a run's model as StableHLO programs for CPU, CUDA and TPU, which take the weights as
inputs.

Each `<name>.stablehlo` is a portable artifact as `jax.export` makes it. signature.json holds the
rest of `jax.export.Exported`, so that use.py can call the programs with jax alone.
`jax.export.deserialize` would need the package flatbuffers, which jax does not install.
"""

import dataclasses
import functools
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

from bigmodel_jax.config import Config
from bigmodel_jax.core.precision import Float
from bigmodel_jax.export import programs
from bigmodel_jax.export.programs import Program, Sizes
from bigmodel_jax.export.subject import Subject, Written, check_answers, open_subject
from bigmodel_jax.export.weights_file import save_weights
from bigmodel_jax.models.compute import StackCompute
from bigmodel_jax.nn.attention.attention import CHUNKED_FROM

PLATFORMS = ("cpu", "cuda", "tpu")
SIGNATURE = "signature.json"


def write(
    config: Config,
    run_dir: Path,
    folder: Path,
    which: str,
    *,
    dtype: Float = "float32",
    adapter: str = "",
    batch: int = 0,
    length: int = 0,
) -> Written:
    """Writes the programs, signature.json and weights*.safetensors into `folder`.

    batch: a fixed number of rows; length: a fixed number of tokens and of cache columns; 0 leaves a
    size open. Raises a ValueError of one line, which names the model and the operation, where an
    operation does not support open sizes.
    """
    check_answers(config, "export: --format stablehlo")
    subject = open_subject(config, run_dir, which=which, adapter=adapter, dtype=dtype)
    save = functools.partial(_save, subject, (batch, length), folder)
    row = config.data.row()
    about = {"forward": save("forward", lambda sizes: programs.forward(subject, sizes, row))}
    if subject.model.make_cache is not None:
        about["prefill"] = save("prefill", lambda sizes: programs.prefill(subject, sizes, row))
        # The cache that decode takes has the shapes that prefill returns.
        cache = about["prefill"]["results"]["cache"]
        about["decode"] = save("decode", lambda sizes: programs.decode(subject, sizes, _parsed(cache, sizes)))
    signature = {"model": subject.kind, "jax": jax.__version__, "dtype": dtype, "programs": about}
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=1) + "\n")
    save_weights(subject.weights, folder)
    return Written(f"{subject.kind}: {', '.join(about)} for {', '.join(PLATFORMS)}, {dtype}", subject.step)


def _save(
    subject: Subject, given: tuple[int, int], folder: Path, name: str, make: Callable[[Sizes], Program]
) -> dict[str, Any]:
    """Writes one program and returns its entry in signature.json."""
    # The program is made twice. The first one shows which symbols it uses, and so which bounds
    # apply.
    open_ = make(_sizes(given, name, []))
    used = {str(n) for table in open_.arguments.values() for x in table.values() for n in x.shape}
    bounds = [text for names, text in _bounds(subject) if names <= used]
    program = make(_sizes(given, name, bounds))
    try:
        made = export.export(jax.jit(program.fn), platforms=PLATFORMS)(*program.arguments.values())
    except Exception as error:  # an operation that needs a fixed size may raise any error while tracing
        raise ValueError(_refused(subject, name, error)) from error
    (folder / f"{name}.stablehlo").write_bytes(made.mlir_module_serialized)
    return {
        "file": f"{name}.stablehlo",
        "arguments": {table: jax.tree.map(array_text, arrays) for table, arrays in program.arguments.items()},
        "results": jax.tree.map(array_text, jax.tree.unflatten(made.out_tree, made.out_avals)),
        "constraints": bounds,
        "platforms": made.platforms,
        "calling_convention_version": made.calling_convention_version,
        "kept_arguments": made.module_kept_var_idx,
        "uses_global_constants": made.uses_global_constants,
    }


def _sizes(given: tuple[int, int], name: str, bounds: list[str]) -> Sizes:
    """The symbols b, t, e, s in a scope of their own with the constraints `bounds`, or given
    numbers.

    The length of a prompt stays symbolic, even if the length of the cache is given.
    """
    batch, length = given
    b, t, e, s = export.symbolic_shape("b, t, e, s", constraints=bounds)
    whole = length if name == "forward" else 0
    return Sizes(batch or b, whole or t, whole or e, length or s)


def _bounds(subject: Subject) -> list[tuple[set[str], str]]:
    """(symbols, the constraint on them) for a model. Texts may have a largest length, and the cache
    must have a column for each of the decoder's start tokens.
    """
    most = longest(subject.config)
    ends = [({name}, f"{name} <= {most}") for name in ("t", "e")] if most else []
    starts = len(subject.model.decoder_starts)
    least = [({"s"}, f"s >= {starts}")] if starts > 1 else []
    return [*ends, *least, ({"t", "s"}, "t <= s")]


def longest(config: Any) -> int:
    """The largest number of tokens that the model and all its towers can read; 0 means no limit.

    Attention that chooses its own form takes another one from `CHUNKED_FROM` keys on. A program
    holds one form, so its limit lies below that number of keys.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    inside = [longest(value) for value in fields.values() if dataclasses.is_dataclass(value)]
    own = [fields["max_seq_len"]] if fields.get("max_seq_len") else []
    fixed = [CHUNKED_FROM - 1] if type(fields.get("compute")) is StackCompute else []
    return min([n for n in (*inside, *own, *fixed) if n], default=0)


def _parsed(texts: dict[str, str], sizes: Sizes) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that `array_text` described, with symbols in the scope of `sizes`."""
    symbols = next((n.scope for n in sizes if not isinstance(n, int)), None)
    found = {}
    for name, text in texts.items():
        dtype, shape = text.rstrip("]").split("[")
        found[name] = jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=symbols) if shape else (), dtype)
    return found


def array_text(x: Any) -> str:
    """The type and shape of an array as text, such as float32[b,t,64]."""
    return f"{x.dtype.name}[{','.join(map(str, x.shape))}]"


def _refused(subject: Subject, name: str, error: Exception) -> str:
    """The message in one line. It names the program, the model, the operation's place and the
    options that may help.
    """
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/bigmodel_jax/" in frame.filename]
    where = [frame for frame in ours if "/export/" not in frame.filename][-1:]
    said = str(error).strip().partition("\n")[0][:160]
    at = f" at `{where[0].line}` ({Path(where[0].filename).name}:{where[0].lineno})" if where else ""
    way = "; --batch N and --length N give them" if name == "forward" else ""
    return f"export: stablehlo: the program {name} of {subject.kind} has no form with open sizes{at}: {said}{way}"
