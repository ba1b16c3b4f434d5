"""Seeded mutations of files, many in one process: each is refused in one line, or changes a field
of ours.

    python tests/faults/chaos_mutations.py KIND SEED FIRST COUNT

prints one JSON array a mutation: what was mutated, what came of it, whether that is accounted for.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from chaos_result import Result

SECONDS = 300  # of COUNT mutations; one takes milliseconds


def judges(folder: Path) -> dict:
    """{kind: draw -> (mutation, what came of it, whether that is accounted for)}, made where they
    are used."""
    return {
        "config_mutations": lambda: _configs(folder),
        "gguf_mutations": lambda: _ggufs(folder),
        "template_mutations": _templates,
    }


def _configs(folder: Path):
    import config_mutations_test
    import runs
    from bigmodel_jax import config_file

    base = config_file.to_json(config_file.load(runs.write(folder)))
    return lambda draw: config_mutations_test.config_outcome(base, folder, draw)


def _ggufs(folder: Path):
    import logging

    import gguf_test
    import mutations_test
    from bigmodel_jax.pretrained import gguf

    path, handler = folder / "m.gguf", mutations_test.Lines()
    gguf_test.write(path)
    plain = gguf.open_gguf(path)
    log = logging.getLogger("bigmodel_jax")
    log.addHandler(handler)
    log.propagate = False
    return lambda draw: mutations_test.gguf_outcome(path, plain, draw, handler.lines)


def _templates():
    import chat_process_test

    return chat_process_test.template_outcome


def main() -> None:
    kind, seed, first, count = sys.argv[1], *map(int, sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        judge = judges(Path(folder))[kind]()
        for index in range(first, first + count):
            try:
                said = judge(random.Random(f"{seed} {kind} {index}"))
            except Exception:
                said = ("", "traceback", traceback.format_exc())
            print(json.dumps(said), flush=True)


def mutations(kind: str, seed: int, first: int, count: int) -> Result:
    """The mutations of these indices, in a process that is killed where it hangs."""
    command = [sys.executable, __file__, kind, *map(str, (seed, first, count))]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hung, err = False, ""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        hung = True
    said = [json.loads(line) for line in out.splitlines()]
    result = Result(count=count)
    for index, (what, came, accounted) in enumerate(said, first):
        if came == "traceback":
            result.fault("tracebacks", f"{index}: {accounted}")
        elif not accounted:
            result.fault("wrong end" if came.startswith("refused") else "silent", f"{index}: {what}: {came}")
        elif came == "refused":
            result.refused.append(what)
    if len(said) < count:
        result.fault("hung" if hung else "tracebacks", f"{first + len(said)}: {err[-2000:]}")
    return result


if __name__ == "__main__":
    main()
