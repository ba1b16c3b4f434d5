"""The time from process start to the first finished step, by phase, for three starts of `train`.

uv run benchmarks/startup.py [CONFIG]
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHASES = ("packages imported", "data opened", "state made", "step compiled", "first step done")


def run(config: str, folder: str) -> dict[str, float]:
    """{phase: seconds since the process was started}, from the run's own log."""
    start = time.time()
    command = [sys.executable, "launch.py", "train", config, "--run_dir", folder, "--train.steps", "200"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    log, marks = Path(folder) / "log.txt", {}
    while PHASES[-1] not in marks and process.poll() is None:
        time.sleep(0.05)
        for line in log.read_text().splitlines() if log.exists() else ():
            stamp, _, text = line.partition(" INFO ")
            if text in PHASES:
                moment = datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f")
                marks[text] = moment.timestamp() - start
    process.kill()
    process.wait()
    return marks


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else "configs/lm_tiny.py"
    for name in ("first start", "second start", "third start"):
        with tempfile.TemporaryDirectory() as folder:
            marks = run(config, folder)
        print(f"{name:13s}", "  ".join(f"{phase} {marks[phase]:.1f} s" for phase in PHASES))


if __name__ == "__main__":
    main()
