"""What happens to a run's files: damage, full disks, other starters. Each event is drawn from a
seed of its own."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from chaos_result import Result, finish
from chaos_runs import Commands, Whole
from chaos_signals import wait_for_moment

# ---------------------------------------------------------------- damages


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def spoil(path: Path, draw: random.Random) -> str:
    """Damages one file; returns how."""
    content = path.read_bytes()
    how = draw.choice(("flip", "flip", "flip", "zeros", "cut", "empty", "remove", "append"))
    at = draw.randrange(len(content)) if content else 0
    if how == "remove":
        path.unlink()
    elif how == "append":
        path.write_bytes(content + b"junk")
    elif how in ("empty", "cut"):
        path.write_bytes(content[:at] if how == "cut" else b"")
    elif content:
        new = bytes([content[at] ^ 1 << draw.randrange(8)]) if how == "flip" else bytes(min(64, len(content) - at))
        path.write_bytes(content[:at] + new + content[at + len(new) :])
    return f"{how} at {at} of {len(content)}"


def _spoil_folder(folder: Path, draw: random.Random) -> str:
    chosen = draw.choice(sorted(p for p in folder.rglob("*") if p.is_dir()))
    if draw.random() < 0.5:
        shutil.rmtree(chosen)
        return f"removed {chosen.name}"
    for path in files_of(chosen):
        path.write_bytes(b"")
    return f"emptied {chosen.name}"


def damage(run_dir: Path, cache: Path, draw: random.Random) -> tuple[str, str]:
    """(what was damaged, how)."""
    target = draw.choices(
        ("checkpoint", "checkpoint folder", "cache", "metrics.jsonl", "config.json", "other"), (45, 10, 15, 10, 8, 12)
    )[0]
    newest = run_dir / "checkpoints" / "16"
    if target == "checkpoint folder":
        return target, _spoil_folder(newest, draw)
    if target in ("metrics.jsonl", "config.json"):
        return target, spoil(run_dir / target, draw)
    if target == "checkpoint":
        path = draw.choice(files_of(newest if draw.random() < 0.8 else run_dir / "checkpoints"))
    elif target == "cache":
        path = draw.choice([p for p in files_of(cache) if p.suffix != ".lock"])
    else:
        path = draw.choice([p for p in files_of(run_dir) if "checkpoints" not in p.parts and p.suffix != ".png"])
    return target, f"{spoil(path, draw)} of {path.name}"


def damages(whole: Whole, commands: Commands, folder: Path, draw: random.Random) -> Result:
    """A run of 16 steps, one thing of it damaged, read by another verb or not, and resumed to its
    end."""
    result, run_dir, cache = Result(count=1), folder / "run", folder / "cache"
    shutil.copytree(whole.half, run_dir)
    shutil.copytree(whole.path.parent / "cache", cache)
    target, how = damage(run_dir, cache, draw)
    what, data = f"{target}: {how}", ("--data.cache_dir", cache)
    verb = draw.choices(("train", "eval", "report", "generate"), (70, 14, 8, 8))[0]
    if verb != "train":
        more = {"eval": ("--json",), "report": (), "generate": ("--prompt", "the", "--max_tokens", "4")}[verb]
        done = commands.run(verb, run_dir, *more, *(data if verb == "eval" else ()))
        if result.ended(done, (0, 2), f"{what}, then {verb}") and verb == "eval" and done.code == 0:
            found = json.loads(done.out.splitlines()[-1])["eval/loss"]
            if found != whole.evaluated and not done.err:
                result.fault("silent", f"{what}: eval/loss {found}, not {whole.evaluated}")
    finish(whole, commands, run_dir, result, what, *data, may_refuse=True)
    return result


# ---------------------------------------------------------------- full disks


def full_disks(whole: Whole, commands: Commands, folder: Path, draw: random.Random) -> Result:
    """No file can grow beyond a limit, or the whole file system is small; later there is room
    again."""
    result, run_dir = Result(count=1), folder / "run"
    small = os.geteuid() == 0 and draw.random() < 0.5
    size = draw.choice((draw.randint(16, 400), draw.randint(400, 4000))) << 10
    if small:
        folder = folder / "disk"
        folder.mkdir()
        run_dir = folder / "run"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        done = commands.run(*whole.train(run_dir), file_bytes=0 if small else size)
        what = f"{'a disk' if small else 'files'} of {size} bytes"
        result.ended(done, (0, 2), what)
        if small:
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
        finish(whole, commands, run_dir, result, what)
    finally:
        if small:
            subprocess.run(["umount", str(folder)], check=True)
    return result


# ---------------------------------------------------------------- two starters


def starters(whole: Whole, commands: Commands, folder: Path, draw: random.Random) -> Result:
    """Two or three starts of one run, at once or later, of which the first may be stopped or killed
    meanwhile."""
    result, run_dir = Result(count=1), folder / "run"
    first = commands.start(*whole.train(run_dir))
    how = draw.choice(("at once", "at once", "later", "later", "stopped", "killed"))
    moment = wait_for_moment(first, run_dir, draw, whole) if how != "at once" else "the start"
    if how in ("stopped", "killed"):
        first.send(signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    others = [commands.start(*whole.train(run_dir)) for _ in range(draw.choice((1, 1, 2)))]
    if how == "stopped":
        time.sleep(draw.uniform(0.5, 6))
        first.send(signal.SIGCONT)
    what = f"{len(others)} more, {how} in {moment}"
    for command in (first, *others):
        done = command.wait()
        if command is first and how == "killed" and done.code == -signal.SIGKILL:
            continue
        good = result.ended(done, (0, 2), what)
        if good and done.code == 2 and not any(says in done.err for says in ("is in use", "has trained", "has taken")):
            result.fault("wrong end", f"{what}: {done.err}")
    finish(whole, commands, run_dir, result, what)
    return result
