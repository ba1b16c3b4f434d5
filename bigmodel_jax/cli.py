"""The command line parses its arguments, calls one function and prints that function's result."""

import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.cluster import join, peers
from bigmodel_jax.core import interrupts, mirror, trust
from bigmodel_jax.core.paths import check_local, expanded
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs import VERBS
from bigmodel_jax.verbs.base import CONFIG, RUN

# The verbs import JAX and the rest of the package lazily, so that `launch.py` alone and a misspelt
# verb answer at once.


def main(args: Sequence[str] | None = None) -> None:
    """Runs `launch.py VERB ...`. A user's mistake prints one line on stderr and exits with code 2.

    In a job of several processes (cluster/), the whole job prints that line once, and all its
    processes exit with the same code.
    """
    if args is None:
        interrupts.tell = peers.end
        args = sys.argv[1:]
        # The restart with another allocator is worth its time only for verbs that train.
        if args[:1] in (["train"], ["sweep"], ["profile"], ["cross-validate"]):
            with interrupts.held():
                runtime.keep_memory()
        runtime.use_gpu_memory()
    if "--trust" in args:
        trust.allow()
    # --trust is valid for every verb, so it is removed before a verb parses its options.
    args = [a for a in args if a != "--trust"]
    try:
        _dispatch(args)
        join.leave()
    except (ValueError, OSError, MemoryError, peers.JobLost) as error:
        _obey_signal()
        if os.environ.get("BIGMODEL_TRACEBACK"):
            traceback.print_exc()
        code = peers.LOST if isinstance(error, peers.JobLost) else 2
        peers.end(f"error: {_text(error)}", code)
        _fail(_text(error))
        sys.exit(code)
    except interrupts.Interrupt as stop:
        interrupts.end(stop)
    except Exception as error:
        from bigmodel_jax.training.diverged import Diverged
        from bigmodel_jax.training.signals import Interrupted

        if isinstance(error, Diverged):
            peers.end(f"error: {error}", 1)
            _fail(str(error))
            sys.exit(1)
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
            # XLA's own message is pages long. Its first line has the size that was missing.
            text = f"a device's memory is not enough ({str(error).splitlines()[0]}); launch.py plan says what fits"
            peers.end(f"error: {text}", 2)
            _fail(text)
            sys.exit(2)
        if not isinstance(error, Interrupted):
            _obey_signal()
            peers.end(traceback.format_exc(), 1)
            raise
        join.leave()
        if peers.speaks():
            print(f"{error}; the same command resumes it", file=sys.stderr)
        interrupts.take()  # a second signal during the exit changes nothing
        sys.exit(interrupts.CODES[error.signal_number])


def _obey_signal() -> None:
    """Ends the process if it has received a signal, since the library's error then follows from the
    signal.
    """
    try:
        interrupts.obey()
    except interrupts.Interrupt as stop:
        interrupts.end(stop)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return mirror.shown(f"{error.filename}: {error.strerror}")
    if isinstance(error, MemoryError):
        return f"this host's memory is not enough ({error or 'nothing more could be had'})"
    return mirror.shown(" ".join(str(error).split())) or type(error).__name__


def _fail(text: str) -> None:
    make_console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(text)}")


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        overview()
        return
    name, rest = args[0], args[1:]
    if name not in VERBS:
        from bigmodel_jax.core.spelling import nearest

        raise ValueError(f"verb {name!r} is unknown{nearest(name, VERBS)}; known: {', '.join(VERBS)}")
    if not rest or rest in (["-h"], ["--help"]):
        describe(name)
        if not rest:
            raise ValueError(f"{name}: what to {name} is missing; usage: {_program()} {VERBS[name].usage}")
        return
    cache = os.environ.get("BIGMODEL_CACHE", "")
    check_local("BIGMODEL_CACHE", cache)
    expanded("BIGMODEL_CACHE", cache)
    VERBS[name].run(rest)


def _program() -> str:
    """The command that started this process, in the one of three spellings that the user typed."""
    started = {"bin/bigmodel-jax": "bigmodel-jax", "bigmodel_jax/__main__.py": "python -m bigmodel_jax"}
    return started.get("/".join(Path(sys.argv[0]).parts[-2:]), "python launch.py")


def overview() -> None:
    """Prints the overview that `launch.py` without arguments shows."""
    program = _program()
    print = make_console(highlight=False).print
    print("\n[bold]bigmodel_jax[/]: train, measure and use large models in JAX, from one launcher.\n")
    print(f"[bold]Usage[/]     {program} [cyan]VERB[/] ...\n")
    print(_table((f"[cyan]{verb.usage.split(' [')[0].split(' --')[0]}[/]", verb.summary) for verb in VERBS.values()))
    print(f"\n  CONFIG  {CONFIG}\n  RUN     {RUN}\n")
    _print_examples(verb.examples[0] for verb in VERBS.values())
    print("\n[bold]Help[/]")
    help_ = {
        "VERB --help": "a verb's options and examples",
        "train CONFIG --help": "every field and its default",
    }
    print(_table((f"{program} {usage}", text) for usage, text in help_.items()))
    print()


def describe(name: str) -> None:
    """Prints the help that `launch.py VERB --help` shows."""
    verb = VERBS[name]
    print = make_console(highlight=False).print
    print(f"\n[bold]{name}[/]: {verb.summary}.\n")
    print(f"[bold]Usage[/]     {_program()} [cyan]{escape(verb.usage)}[/]\n", soft_wrap=True)
    print(f"{escape(verb.details)}\n", soft_wrap=True)
    _print_examples(verb.examples)
    print()


def _print_examples(examples: Iterable[str]) -> None:
    print = make_console(highlight=False).print
    print("[bold]Examples[/]")
    for example in examples:
        print(f"  {_program()} {escape(example)}", soft_wrap=True)


def _table(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for row in rows:
        table.add_row(*row)
    return table
