"""Runs the programs of this folder. It needs jax alone, not the packages that made the folder.

python use.py                                     lists the programs and calls each one once
python use.py --inputs in.npz --outputs out.npz   runs `forward` on the arrays in a file
python use.py --prompt 5,17,3 --tokens 16         continues token ids, greedily, and prints ids;
                                                  an image or a recording beside it is in --inputs
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

HERE = Path(__file__).resolve().parent
SIGNATURE = json.loads((HERE / "signature.json").read_text())
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "BOOL": "bool"}


def weights():
    """The weights by name. Every program takes them as its first argument."""
    found = {}
    # This reads safetensors without the package of that name. A file has 8 bytes with the header's
    # length, a JSON header with each array's byte range, and then the bytes.
    for file in sorted(HERE.glob("weights*.safetensors")):
        data = np.memmap(file, np.uint8, "r")
        start = 8 + int(data[:8].view(np.uint64)[0])
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        for name, about in header.items():
            first, last = (start + at for at in about["data_offsets"])
            found[name] = jnp.asarray(data[first:last].view(DTYPES[about["dtype"]]).reshape(about["shape"]))
    return found


def program(name):
    """A function from tables of arrays to a table of results. signature.json names the tables.

    The tables are "weights", "batch" and, for programs that generate, "cache".
    """
    about = SIGNATURE["programs"][name]
    scope = export.SymbolicScope(about["constraints"])

    def aval(text):  # such as float32[b,t,64]
        dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()
        return jax.core.ShapedArray(export.symbolic_shape(shape, scope=scope) if shape else (), jnp.dtype(dtype))

    inputs, results = (tuple(about["arguments"].values()), {}), about["results"]
    in_avals, out_avals = ([aval(text) for text in jax.tree.leaves(tree)] for tree in (inputs, results))
    parts = {
        "fun_name": name,
        "in_tree": jax.tree.structure(inputs),
        "in_avals": tuple(in_avals),
        "out_tree": jax.tree.structure(results),
        "out_avals": tuple(out_avals),
        "nr_devices": 1,
        "platforms": tuple(about["platforms"]),
        "mlir_module_serialized": (HERE / about["file"]).read_bytes(),
        "calling_convention_version": about["calling_convention_version"],
        "module_kept_var_idx": tuple(about["kept_arguments"]),
        "uses_global_constants": about["uses_global_constants"],
    }
    # The programs run on one device, so no argument or result has a sharding.
    parts |= dict.fromkeys(("_in_named_shardings", "in_shardings_hlo"), (None,) * len(in_avals))
    parts |= dict.fromkeys(("_out_named_shardings", "out_shardings_hlo"), (None,) * len(out_avals))
    parts |= dict.fromkeys(("ordered_effects", "unordered_effects", "disabled_safety_checks"), ())
    fields = [field.name for field in dataclasses.fields(export.Exported)]
    return jax.jit(export.Exported(**{field: parts.get(field) for field in fields}).call)


def arrays(table, **sizes):
    """Arrays of zeros (ones for segment_ids) with the types and shapes of a table in
    signature.json.
    """

    def one(name, text):
        dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()
        shape = [sizes[n] if n in sizes else int(n) for n in shape.split(",") if n]
        return (jnp.ones if name.endswith("segment_ids") else jnp.zeros)(shape, dtype)

    return {name: one(name, text) for name, text in table.items()}


def generate(params, prompts, count, beside=None):
    """`count` token ids after each prompt, as lists, by greedy decoding.

    Prompts are lists of ids. Shorter ones are padded on the left. beside: what the model reads
    beside texts, by name.
    """
    prefill, decode = program("prefill"), program("decode")
    tables = SIGNATURE["programs"]["prefill"]["arguments"]
    length = max(map(len, prompts))
    # Segment 0 marks padding. Positions count from the first token of each prompt.
    tokens = np.array([[0] * (length - len(p)) + list(p) for p in prompts], np.int32)
    segments = np.array([[0] * (length - len(p)) + [1] * len(p) for p in prompts], np.int32)
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    encodes = "encoder_tokens" in tables["batch"]
    given = {"encoder_tokens": tokens, "encoder_segment_ids": segments}
    given |= {"tokens": tokens, "segment_ids": segments, "positions": positions} | (beside or {})
    if lacking := [name for name in tables["batch"] if name not in given]:
        raise SystemExit(f"--prompt: the model also reads {', '.join(lacking)}; give a file of it as --inputs")
    cache = arrays(tables["cache"], b=len(prompts), s=length + count)
    out = prefill(params, {name: given[name] for name in tables["batch"]}, cache)
    # The text of an encoder-decoder begins anew at position 0. Any other text goes on after the
    # prompt.
    last = np.zeros(len(prompts), np.int32) if encodes else positions[:, -1]
    found = [out["logits"].argmax(-1)]
    for step in range(1, count):
        one = np.ones((len(prompts), 1), np.int32)
        batch = {"tokens": found[-1][:, None].astype(np.int32), "positions": last[:, None] + step, "segment_ids": one}
        out = decode(params, batch, out["cache"])
        found.append(out["logits"].argmax(-1))
    return np.stack(found, 1).tolist()


def main():
    """Reads the command line and runs the programs that were asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=Path)
    options.add_argument("--outputs", type=Path, default=Path("outputs.npz"))
    options.add_argument("--prompt", type=lambda text: [int(n) for n in text.split(",")])
    options.add_argument("--tokens", type=int, default=16)
    given, params = options.parse_args(), weights()
    inputs = dict(np.load(given.inputs)) if given.inputs else {}
    if given.prompt:
        print(",".join(map(str, generate(params, [given.prompt], given.tokens, inputs)[0])))
    elif given.inputs:
        out = program("forward")(params, inputs)
        np.savez(given.outputs, **{name: np.asarray(x, np.float32) for name, x in out.items()})
    else:
        sizes = {"b": 2, "t": 8, "e": 8, "s": 16}
        for name, about in SIGNATURE["programs"].items():
            tables = list(about["arguments"].values())[1:]
            out = program(name)(params, *(arrays(table, **sizes) for table in tables))
            print(name, {key: x.shape for key, x in out.items() if key != "cache"})


if __name__ == "__main__":
    main()
