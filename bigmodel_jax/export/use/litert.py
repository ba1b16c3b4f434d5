"""Runs the programs of this folder. It needs ai-edge-litert and numpy.

python use.py                                     lists the programs and calls each one once
python use.py --inputs in.npz --outputs out.npz   runs `forward` on the arrays in a file
python use.py --prompt 5,17,3 --tokens 16         continues token ids, greedily, and prints ids;
                                                  an image or a recording beside it is in --inputs
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

HERE = Path(__file__).resolve().parent
PROGRAMS = json.loads((HERE / "signature.json").read_text())["programs"]
# Sizes for a trial call where a program leaves them open: rows, tokens, encoder tokens, cache
# columns.
SIZES = {"b": 2, "t": 8, "e": 8, "s": 16}


def program(name):
    """A function from a table of input arrays to a table of outputs. signature.json names both."""
    runner = Interpreter(model_path=str(HERE / PROGRAMS[name]["file"])).get_signature_runner("serving_default")
    return lambda inputs: runner(**inputs)


def zeros(text, **sizes):
    """An array of zeros. text: its type and shape as in signature.json, such as float32[b,t,64]."""
    dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()
    return np.zeros([sizes[n] if n in sizes else int(n) for n in shape.split(",") if n], dtype)


def generate(prompts, count, beside=None):
    """`count` token ids after each prompt, as lists, by greedy decoding.

    Prompts are lists of ids. Shorter ones are padded on the left. beside: what the model reads
    beside texts, by name.
    """
    prefill, decode = program("prefill"), program("decode")
    wanted = PROGRAMS["prefill"]["inputs"]
    length = max(map(len, prompts))
    # Segment 0 marks padding. Positions count from the first token of each prompt.
    tokens = np.array([[0] * (length - len(p)) + list(p) for p in prompts], np.int32)
    segments = np.array([[0] * (length - len(p)) + [1] * len(p) for p in prompts], np.int32)
    positions = np.maximum(segments.cumsum(1, dtype=np.int32) - 1, 0)
    encodes = "encoder_tokens" in wanted
    given = {"encoder_tokens": tokens, "encoder_segment_ids": segments}
    given |= {"tokens": tokens, "segment_ids": segments, "positions": positions} | (beside or {})
    if lacking := [name for name in wanted if name not in given and not name.startswith("cache/")]:
        raise SystemExit(f"--prompt: the model also reads {', '.join(lacking)}; give a file of it as --inputs")
    sizes = {"b": len(prompts), "s": length + count, "e": length}
    out = prefill({name: given[name] if name in given else zeros(text, **sizes) for name, text in wanted.items()})
    # The text of an encoder-decoder begins anew at position 0. Any other text goes on after the
    # prompt.
    last = np.zeros(len(prompts), np.int32) if encodes else positions[:, -1]
    one, found = np.ones((len(prompts), 1), np.int32), [out["logits"].argmax(-1)]
    for step in range(1, count):
        batch = {"tokens": found[-1][:, None].astype(np.int32), "positions": last[:, None] + np.int32(step)}
        cache = {name.removeprefix("new_"): x for name, x in out.items() if name.startswith("new_cache/")}
        out = decode(batch | {"segment_ids": one} | cache)
        found.append(out["logits"].argmax(-1))
    return np.stack(found, 1).tolist()


def main():
    """Reads the command line and runs the programs that were asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=Path)
    options.add_argument("--outputs", type=Path, default=Path("outputs.npz"))
    options.add_argument("--prompt", type=lambda text: [int(n) for n in text.split(",")])
    options.add_argument("--tokens", type=int, default=16)
    given = options.parse_args()
    inputs = dict(np.load(given.inputs)) if given.inputs else {}
    if given.prompt:
        print(",".join(map(str, generate([given.prompt], given.tokens, inputs)[0])))
    elif given.inputs:
        np.savez(given.outputs, **program("forward")(inputs))
    else:
        for name, about in PROGRAMS.items():
            out = program(name)({key: zeros(text, **SIZES) for key, text in about["inputs"].items()})
            print(name, {key: x.shape for key, x in out.items() if not key.startswith("new_cache/")})


if __name__ == "__main__":
    main()
