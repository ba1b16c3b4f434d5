"""Runs all GPU measurements in turn: attention, losses against a CPU, settings beside their plans.

    uv run --extra gpu python benchmarks/gpu.py [--torch PYTHON_WITH_TORCH_AND_TRANSFORMERS]
        [SETTING ...]

Plans come from `gpu_settings.py`, which needs no GPU; run it first. Every JSON line that a part
prints is appended to runs/gpu/results.jsonl at once. If a part fails or hangs, the others still
run.
"""

import json
import subprocess
import sys
from pathlib import Path

from gpu_settings import FOLDER, SETTINGS, save

HERE = Path(__file__).parent
LIMIT = 600  # seconds a part may take
PEER = "llama_1b"


def run(label: str, *command: str) -> list[dict]:
    """Runs one part, and returns and stores the records that it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        out, error = done.stdout, done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as late:
        out, error = (late.stdout or b"").decode(), [f"longer than {LIMIT} s"]
    records = [{"part": label} | json.loads(line) for line in out.splitlines() if line.startswith("{")]
    with (FOLDER / "results.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    for line in error:
        print(f"{label} failed: {line}", flush=True)
    return records


def row(record: dict) -> str:
    plan = record.get("predicted") or {}
    rate = next((value for name, value in record.items() if name.endswith("_per_second")), 0.0)
    return (
        f"{record['name']:18s} GiB {plan.get('gib', 0):6.2f} planned {record['peak_gib']:6.2f} measured   "
        f"ms a step {plan.get('step_ms', 0):7.1f} planned {record['step_ms']:7.1f} measured   "
        f"{rate:9,.0f}/s  MFU {record.get('mfu', 0):.1%}"
    )


def main(args: list[str]) -> None:
    torch_python = args.pop(args.index("--torch") + 1) if "--torch" in args else ""
    names = [a for a in args if a != "--torch"] or [name for name in SETTINGS if name != "tiny"]
    for name in ("attention", "losses"):
        for record in run(name, sys.executable, str(HERE / f"gpu_{name}.py")):
            print(json.dumps(record), flush=True)
    parts = {name: (sys.executable, str(HERE / "gpu_speed.py"), name) for name in names}
    if torch_python:
        setting = str(save(PEER) / "config.json")
        parts["torch"] = (torch_python, str(HERE / "gpu_torch.py"), setting, "compile", "residual")
    for name, command in parts.items():
        for record in run(name, *command):
            print(row(record), flush=True)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    main(sys.argv[1:])
