"""A program that has imported everything and forks a child for each command: a start costs no
imports.

It reads one JSON request a line and answers with one: {"args": ..., "out": ..., "err": ...,
"file_bytes": ...} with the child's process id, {"poll": pid} with its exit code, or null while it
lives. It starts no backend of JAX and no thread, which a fork would not survive.
"""

import gc
import json
import os
import resource
import sys


def preload() -> None:
    import jax  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import tensorboardX  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import bigmodel_jax.report.page
    import bigmodel_jax.training.run
    import bigmodel_jax.verbs.runs
    import bigmodel_jax.verbs.weights  # noqa: F401


def become(request: dict) -> int:
    """Runs one command as launch.py does; returns its exit code."""
    from bigmodel_jax import runtime
    from bigmodel_jax.__main__ import start

    for path, number in ((os.devnull, 0), (request["out"], 1), (request["err"], 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.environ.update(runtime.ARENA)  # so that it does not start itself once more
    if request["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))
    sys.argv = ["launch.py", *request["args"]]
    try:
        start()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def fork(request: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = become(request)
        sys.stdout.flush()
    finally:
        os._exit(code)


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main() -> None:
    preload()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread does not survive a fork"
    gc.freeze()  # so that no child looks for cycles in what was imported
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an import prints is no answer
    print(json.dumps("ready"), file=answers)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        print(json.dumps(poll(request["poll"]) if "poll" in request else fork(request)), file=answers)


if __name__ == "__main__":
    main()
