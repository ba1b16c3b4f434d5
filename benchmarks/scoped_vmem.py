"""The TPU compiler's estimate of a step, by the fast memory (VMEM) that one fusion may use.

    uv run --extra plan benchmarks/scoped_vmem.py 8b_v5e 8b_v5p:32768,65536 70b_v6e:65536,98304

core/compiler_options.py sets our limits. Names are those of docs/plans. Each is compiled with the
compiler's default, with our own limit, and with the KiB named. Programs that are not cached are
compiled one at a time, each in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.core.compiler_options import SCOPED_VMEM
from bigmodel_jax.plan import compile as compiling
from bigmodel_jax.plan import estimate, topology

PLANS = Path(__file__).parents[1] / "docs" / "plans"
COLUMNS = ("step", "KiB", "predicted", "MFU", "chip, as compiled", "HBM", "GiB", "compile s (CPU s)")
KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}


def row(name: str, limit: int) -> str:
    from bigmodel_jax.plan import worker

    plan = json.loads((PLANS / name / "plan.json").read_text())
    where = topology.parse(plan["topology"], plan["slices"])
    SCOPED_VMEM.clear()
    if limit:
        SCOPED_VMEM[KINDS[where.chip.name]] = limit
    request = {name: plan[name] for name in ("config", "topology", "slices")} | {"cache": str(compiling.root())}
    made = compiling.read(worker.run(request), seconds=0.0)
    if made.refused:
        return f"| {name} | {limit or 'default'} | does not fit |" + " |" * 5
    seen = estimate.seen(config_file.from_json(plan["config"]), where, made, 0.0, {"price": 0.0, "date": ""})
    line = seen["roofline"]
    cells = (name, limit or "default", f"{seen['step_seconds']:.3f} s", f"{seen['mfu']:.1%}")
    cells += (f"{line['expected']:.3f} s", f"{line['hbm']:.3f} s", f"{compiling.used_bytes(made) / 2**30:.2f}")
    cells += (f"{made.compile_seconds:.0f} ({made.cpu_seconds:.0f})",)
    return "| " + " | ".join(map(str, cells)) + " |"


def main(args: list[str]) -> None:
    print(f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|", sep="\n", flush=True)
    for name, _, more in (arg.partition(":") for arg in args):
        chip = json.loads((PLANS / name / "plan.json").read_text())["chip"]["name"]
        limits = {0, SCOPED_VMEM[KINDS[chip]], *(int(n) for n in more.split(",") if n)}
        for limit in sorted(limits):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--row", name, str(limit)]
                subprocess.run(command, env=compiling.environment("tpu", folder), check=True)


if __name__ == "__main__":
    if sys.argv[1] == "--row":
        print(row(sys.argv[2], int(sys.argv[3])))
    else:
        main(sys.argv[1:])
