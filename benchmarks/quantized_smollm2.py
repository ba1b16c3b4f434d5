"""SmolLM2-135M-Instruct in each storage kind: bytes, and bits per byte on the addresses after 2000.

    uv run --extra pretrained python benchmarks/quantized_smollm2.py RUN [--rows 64]
        [--calibration 32] [--kinds int8 ...]

RUN is made by `launch.py import smollm2-135m-instruct`. Rows have 256 tokens. Each line is printed
as soon as it is known.
"""

import argparse
import itertools
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.compress.calibrate import by_gptq, by_largest
from bigmodel_jax.compress.quantise import pack, quantised, stored_bytes
from bigmodel_jax.core import params, sharding
from bigmodel_jax.models.quantize import QuantizeConfig
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.set_evaluations import validation

KINDS = {
    "int8": (QuantizeConfig("int8"), None),
    "int4": (QuantizeConfig("int4"), None),
    "int4-gptq": (QuantizeConfig("int4"), by_gptq),
    "float8": (QuantizeConfig("float8"), None),
    "nf4": (QuantizeConfig("nf4"), None),
    "int8_dynamic": (QuantizeConfig("int8_dynamic"), None),
    "int8_static": (QuantizeConfig("int8_static"), by_largest),
    "nf4-gptq": (QuantizeConfig("nf4"), by_gptq),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    config = config_file.load(args.run, ["--data.seq_len", "256", "--eval.batch_size", "8"])
    mesh = sharding.make_mesh(config.parallel)
    weights, _ = load_weights(config, args.run, mesh)
    batches = list(itertools.islice(validation(config, mesh, args.run, resumes=True), args.rows // 8))
    before = evaluate(config, make_eval_step(config, mesh), weights, batches)["eval/bits_per_byte"]
    print(f"float32      {before:.5f} bits per byte on {args.rows} rows", flush=True)
    whole = 4 * params.count(config.make_model().spec)
    for name in args.kinds:
        asked, find = KINDS[name]
        new = quantised(config, asked)
        nodes = find(config, weights, asked, args.calibration, lambda x, _: x) if find else {}
        stored = pack(new, weights, mesh, nodes)
        now = evaluate(new, make_eval_step(new, mesh), stored, batches)["eval/bits_per_byte"]
        share = stored_bytes(new) / whole
        print(f"{name:12s} {now:.5f}, lost {now - before:+.5f}; bytes ÷ float32 {share:.4f}", flush=True)


if __name__ == "__main__":
    main()
