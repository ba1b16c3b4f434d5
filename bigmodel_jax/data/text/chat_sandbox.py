"""The program of the process in which chat templates are rendered; data/text/chat_process.py starts it.

A template is somebody else's program. In a process of its own, under the kernel's limits, no template can run on, fill
the host's memory or bring the interpreter down: whatever it calls, and also while Jinja compiles it. Counting steps and
sizes inside Jinja would need every operator, method and filter wrapped, and would miss the next one.

This file is run by its path. It imports the standard library and Jinja alone, so that it starts in a tenth of a second.
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

MARKS = "\ufdd0", "\ufdd1"  # chat.BEGIN, chat.END
MEMORY = 512 << 20  # bytes of address space; the process itself takes 40 MiB


class Refused(Exception):
    """What the template says through `raise_exception`."""


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: what stands between is the assistant's."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return MARKS[0] + caller() + MARKS[1]


def raise_exception(message: str):
    raise Refused(str(message))


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    """The template in a sandbox, with the functions and settings of transformers' chat_template_utils."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def line_of(error: BaseException) -> str:
    """ " (line N)" of the template, where the error's traceback passes through it."""
    lines = []
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def rendered(template: str, fields: dict, most: int) -> dict[str, str]:
    """{"text": the rendered text} of at most `most` characters, or {"error": what is wrong}."""
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
    except Exception as error:  # any exception that the template's own code raises: what it calls may raise anything
        return {"error": f"{type(error).__name__}: {error}{line_of(error)}"}
    if len(text) > most:
        return {"error": f"it makes a text of {len(text)} characters; the most is {most}"}
    return {"text": text}


def main() -> None:
    """Answers requests, a line of JSON each, until its input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the other process decides
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Seconds of computing, not of waiting: a busy machine changes nothing. SIGPROF ends the process, whatever it does.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = json.dumps(rendered(request["template"], request["fields"], request["most"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
