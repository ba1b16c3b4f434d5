"""SmolLM2-135M-Instruct from its GGUF file: answer, loss and speed, beside transformers.

    uv run --extra pretrained python benchmarks/smollm2.py [--reference-python PATH] [--rounds 5]

PATH is a Python with torch and transformers, which reads our export. Both sides generate in turn,
so that other load on the machine affects both alike; the figure is the median of the rounds.
Without PATH, only our side runs.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from bigmodel_jax import config_file
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.pretrained.packages import fetch
from bigmodel_jax.pretrained.transfer import export_weights, import_weights
from bigmodel_jax.training.saved import load_weights

SENTENCE = "The capital of France is Paris. It is known for the Eiffel Tower and its museums."
PROMPT = "The capital of France is"
TOKENS = 64

# It prints one JSON line with the loss. Then, for each line that it reads, it prints one with a
# generation.
REFERENCE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, sentence, text, count = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(sentence, add_special_tokens=False, return_tensors="pt").input_ids
with torch.no_grad():
    print(json.dumps({"loss": model(ids, labels=ids).loss.item(), "threads": torch.get_num_threads()}), flush=True)
prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
options = dict(do_sample=False, max_new_tokens=int(count), min_new_tokens=int(count))
for _ in sys.stdin:
    begin = time.perf_counter()
    out = model.generate(**prompt, **options)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "text": tokenizer.decode(out[0])}), flush=True)
"""


def ours(run_dir: Path) -> tuple[float, Callable[[], tuple[float, str]]]:
    """(loss on the sentence, a function that generates once and returns (seconds, text))."""
    config = config_file.load(run_dir)
    mesh = sharding.make_mesh(ParallelConfig(data=1))
    with sharding.use(mesh, config.parallel.rules):
        weights, _ = load_weights(config, run_dir, mesh)
        model, tokenizer = config.model.make(), load_tokenizer(run_dir / "tokenizer.json")
        ids = jnp.array([tokenizer.encode(SENTENCE)], jnp.int32)
        batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": jnp.ones_like(ids[:, 1:], jnp.float32)}
        loss = NextToken().loss(model, weights, batch, rng=None, train=False).mean

    def once() -> tuple[float, str]:
        begin = time.perf_counter()
        sample = SampleConfig(max_tokens=TOKENS, temperature=0.0)
        row = generate(model, weights, [tokenizer.encode(PROMPT)], sample, stop=())[0]
        return time.perf_counter() - begin, PROMPT + tokenizer.decode(row)

    return float(loss.compute()), once


@contextlib.contextmanager
def transformers(python: str, folder: Path):
    """Like `ours` for transformers, in a process of its own."""
    command = [python, "-c", REFERENCE, str(folder), SENTENCE, PROMPT, str(TOKENS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask() -> dict:
            return json.loads(process.stdout.readline() or "{}") or exit("the reference ended; see above")

        def once() -> tuple[float, str]:
            process.stdin.write("\n")
            process.stdin.flush()
            found = ask()
            return found["seconds"], found["text"]

        yield ask()["loss"], once
        process.stdin.close()


def measure(sides: dict[str, Callable], rounds: int) -> None:
    """Prints the median speed of each side, and the ratio of the first to the second."""
    texts = {name: once()[1] for name, once in sides.items()}  # compiles, and warms up
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, once in sides.items():
            seconds[name].append(once()[0])
    speed = {name: [TOKENS / s for s in found] for name, found in seconds.items()}
    for name, found in speed.items():
        middle, low, high = statistics.median(found), min(found), max(found)
        print(f"{name:14s} speed  {middle:8.1f} tokens/s ({low:.1f} to {high:.1f}), one row, greedy, float32")
        print(f"{name:14s} says   {texts[name][:80]!r}")
    if len(sides) == 2:
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        print(f"tokens/s, {' / '.join(sides)}: {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        run_dir, exported = Path(scratch) / "run", Path(scratch) / "exported"
        begin = time.perf_counter()
        import_weights(fetch("smollm2-135m-instruct"), run_dir)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"import                {time.perf_counter() - begin:8.1f} s, peak memory of the process {peak:.2f} GiB")
        loss, once = ours(run_dir)
        print(f"{'ours':14s} loss   {loss:8.5f}")
        sides = {"ours": once}
        if args.reference_python:
            export_weights(config_file.load(run_dir), run_dir, exported)
            loss, theirs = stack.enter_context(transformers(args.reference_python, exported))
            print(f"{'transformers':14s} loss   {loss:8.5f}")
            sides["transformers"] = theirs
        measure(sides, args.rounds)


if __name__ == "__main__":
    main()
