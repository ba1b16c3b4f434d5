"""The program in whose process chat templates are rendered; data/text/chat_process.py starts it.

A template is a program by somebody else. In a process of its own, under the kernel's limits, it
cannot run for ever, fill the host's memory or crash the interpreter, even while Jinja compiles it.
Limits inside Jinja would require wrapping every operator, method and filter, and would miss new
ones.

This file is run by its path. It imports only the standard library and Jinja, so that it starts in a
tenth of a second.
"""

import datetime
import functools
import json
import resource
import signal
import sys
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MARKS = "\ufdd0", "\ufdd1"  # BEGIN and END of chat_quoted
MEMORY = 512 << 20  # bytes of address space; the process itself needs 40 MiB


class Refused(Exception):
    """The template's own refusal, by `raise_exception`."""


class Generation(Extension):
    """The block {% generation %} ... {% endgeneration %}, which surrounds the assistant's text."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return MARKS[0] + caller() + MARKS[1]


def raise_exception(message: str):
    """Refuse the conversation. Templates call this function."""
    raise Refused(str(message))


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Encode a value as JSON, with the defaults of transformers' filter."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    """Return the sandboxed template with the functions and settings of transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def line_of(error: BaseException) -> str:
    """Return " (line N)" of the template from the error's traceback; "" without such a line."""
    lines = []
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def rendered(template: str, fields: dict, most: int) -> dict[str, str]:
    """Return {"text": rendered text} of at most `most` characters, or {"error": what is wrong}."""
    try:
        text = compiled(template).render(**fields)
    except Refused as error:
        return {"error": str(error)}
    except TemplateSyntaxError as error:
        return {"error": f"{error.message} (line {error.lineno})"}
    except TemplateError as error:
        return {"error": f"{type(error).__name__}: {error}{line_of(error)}"}
    except MemoryError as error:
        return {"error": f"it needs more than {MEMORY >> 20} MiB{line_of(error)}"}
    except Exception as error:  # the template's code may raise anything
        return {"error": f"{type(error).__name__}: {error}{line_of(error)}"}
    if len(text) > most:
        return {"error": f"it makes a text of {len(text)} characters; the most is {most}"}
    return {"text": text}


def main() -> None:
    """Answer requests, one line of JSON each, until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ctrl-C reaches the whole terminal, but only the parent process reacts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # CPU seconds are counted and not elapsed time, so a busy machine changes nothing. SIGPROF
        # ends the process in any state.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = json.dumps(rendered(request["template"], request["fields"], request["most"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
