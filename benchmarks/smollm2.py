"""SmolLM2-135M-Instruct from its GGUF file: the answer, the loss and the speed of generation, beside transformers.

    uv run --extra pretrained python benchmarks/smollm2.py [--reference-python PATH]

PATH is a Python with torch, transformers, gguf and accelerate; without it, only our side runs.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp

from bigmodel_jax import config_file
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.tokenizers import load_tokenizer
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.pretrained.packages import fetch
from bigmodel_jax.pretrained.transfer import import_weights
from bigmodel_jax.training.saved import load_weights

SENTENCE = "The capital of France is Paris. It is known for the Eiffel Tower and its museums."
PROMPT = "The capital of France is"
TOKENS = 64

REFERENCE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(sys.argv[2], add_special_tokens=False, return_tensors="pt").input_ids
with torch.no_grad():
    loss = model(ids, labels=ids).loss.item()
prompt = tokenizer(sys.argv[3], add_special_tokens=False, return_tensors="pt")
options = dict(do_sample=False, max_new_tokens=int(sys.argv[4]), min_new_tokens=int(sys.argv[4]))
seconds = []
for _ in range(4):
    begin = time.perf_counter()
    out = model.generate(**prompt, **options)
    seconds.append(time.perf_counter() - begin)
print(json.dumps({"loss": loss, "seconds": min(seconds[1:]), "text": tokenizer.decode(out[0])}))
"""


def ours(run_dir: Path) -> dict:
    config = config_file.load(run_dir)
    mesh = sharding.make_mesh(ParallelConfig(data=1))
    with sharding.use(mesh, config.parallel.rules):
        weights, _ = load_weights(config, run_dir, mesh)
        model, tokenizer = config.model.make(), load_tokenizer(run_dir / "tokenizer.json")
        ids = jnp.array([tokenizer.encode(SENTENCE)], jnp.int32)
        batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": jnp.ones_like(ids[:, 1:], jnp.float32)}
        loss = NextToken().loss(model, weights, batch, rng=None, train=False).mean
        sample, seconds = SampleConfig(max_tokens=TOKENS, temperature=0.0), []
        for _ in range(4):
            begin = time.perf_counter()
            row = generate(model, weights, [tokenizer.encode(PROMPT)], sample, stop=())[0]
            seconds.append(time.perf_counter() - begin)
    return {"loss": float(loss.compute()), "seconds": min(seconds[1:]), "text": PROMPT + tokenizer.decode(row)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run_dir, exported = Path(scratch) / "run", Path(scratch) / "exported"
        begin = time.perf_counter()
        import_weights(fetch("smollm2-135m-instruct"), run_dir)
        print(f"import                {time.perf_counter() - begin:8.1f} s")
        found = ours(run_dir)
        report("ours", found)
        if args.reference_python:
            from bigmodel_jax.pretrained.transfer import export_weights

            export_weights(config_file.load(run_dir), run_dir, exported)
            command = [args.reference_python, "-c", REFERENCE, str(exported), SENTENCE, PROMPT, str(TOKENS)]
            theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            report("transformers", theirs)
            print(f"tokens/s, ours / transformers {theirs['seconds'] / found['seconds']:.2f}")


def report(name: str, found: dict) -> None:
    print(f"{name:14s} loss   {found['loss']:8.5f}")
    print(f"{name:14s} speed  {TOKENS / found['seconds']:8.1f} tokens/s, one row, greedy, float32")
    print(f"{name:14s} says   {found['text'][:80]!r}")


if __name__ == "__main__":
    main()
