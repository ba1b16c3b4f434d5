"""The bodies of text requests: OpenAI's fields as declared types with ranges.

Every field of a body is used, or refused, or ignored because it describes the caller and changes no
answer. An unsupported field of OpenAI's is accepted with the value that has no effect. An unknown
name is refused, and the error names the nearest known one.
"""

import dataclasses
from typing import Annotated, Any

from bigmodel_jax.core import ranges
from bigmodel_jax.core.ranges import Count, CountOrZero, Range, ShareAboveZero
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.serve import tools
from bigmodel_jax.serve.refused import Refused

Temperature = Annotated[float, Range("0 or more and at most 2", 0, 2)]
Choices = Annotated[int, Range("1 or more and at most 16", 1, 16)]
Seed = Annotated[int, Range("at least -2**63 and below 2**63", -(2**63), 2**63 - 1)]
OfFive = Annotated[int, Range("0 or more and at most 5", 0, 5)]
OfTwenty = Annotated[int, Range("0 or more and at most 20", 0, 20)]
MOST_STOPS, LONGEST_STOP = 16, 256
FORMS = ("text", "json_object", "json_schema")
TOPS = 20  # the largest number of likeliest tokens that a request can ask for

CALLER = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store", "verbosity"}
"Fields that describe the caller or OpenAI's own service; they change no answer."
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "best_of": 1,
    "suffix": "",
    "modalities": ["text"],
    "parallel_tool_calls": True,
}
"Fields of OpenAI's that are not supported, with the value that has no effect."


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """OpenAI's `stream_options`. include_usage: the last chunk counts the tokens.

    include_obfuscation is accepted and has no effect.
    """

    include_usage: bool = False
    include_obfuscation: bool = False


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The fields that both text routes share: how answers are drawn.

    top_k, ignore_eos and regex are not OpenAI's. Fields that are not listed here are OpenAI's.

    - top_k: draw from the k likeliest tokens; 0 means all.
    - n: texts per prompt.
    - seed: the same seed draws the same text; None draws a new seed.
    - ignore_eos: go on after a stop token.
    - response_format: OpenAI's "text", "json_object" or "json_schema", which constrains the answer.
    - regex: a regular expression that the answer must match.
    """

    model: str = ""
    temperature: Temperature = 1.0
    top_p: ShareAboveZero = 1.0
    top_k: CountOrZero = 0
    n: Choices = 1
    seed: Seed | None = None
    stop: str | tuple[str, ...] = ()
    stream: bool = False
    stream_options: dict = dataclasses.field(default_factory=dict)
    ignore_eos: bool = False
    response_format: dict = dataclasses.field(default_factory=dict)
    regex: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether the last streamed chunk counts the tokens."""
        return bool(self.stream_options.get("include_usage"))

    def check(self) -> None:
        """Raises Refused for values that contradict each other."""
        if not self.model:
            raise Refused("model is missing; GET /v1/models lists what is served", "model")
        if len(self.stops) > MOST_STOPS:
            raise Refused(f"stop has {len(self.stops)} strings; at most {MOST_STOPS} are allowed", "stop")
        for stop in self.stops:
            if not 1 <= len(stop) <= LONGEST_STOP:
                raise Refused(f"a stop string has {len(stop)} characters; it must have 1 to {LONGEST_STOP}", "stop")
        if self.stream_options and not self.stream:
            raise Refused("stream_options is for stream = true", "stream_options")
        parse(StreamOptions, self.stream_options, "stream_options.")
        self.schema()
        held = self.regex or self.schema() is not None
        if self.regex and self.schema() is not None:
            raise Refused("regex and response_format are given; an answer is held to one of them", "regex")
        if held and self.ignore_eos:
            raise Refused("ignore_eos = true: an answer that is held to a form ends where the form does", "ignore_eos")

    def schema(self) -> Any | None:
        """The JSON schema that the answer is held to, or None."""
        form = self.response_format.get("type", "text")
        if form not in FORMS:
            raise Refused(
                f"response_format.type = {str(form)[:40]!r}; allowed: {', '.join(FORMS)}", "response_format.type"
            )
        known = {"type", "json_schema"} if form == "json_schema" else {"type"}
        if unknown := sorted(self.response_format.keys() - known):
            name = f"response_format.{unknown[0]}"[:60]
            raise Refused(f"{name} does not belong to the type {form!r}; allowed: {', '.join(sorted(known))}", name)
        if form != "json_schema":
            return {"type": "object"} if form == "json_object" else None
        given = self.response_format.get("json_schema")
        schema = given.get("schema") if isinstance(given, dict) else None
        if not isinstance(schema, dict | bool):
            raise Refused("response_format.json_schema.schema is no JSON schema", "response_format.json_schema.schema")
        return schema


@dataclasses.dataclass(frozen=True)
class Completion(Sampled):
    """The body of /v1/completions.

    - prompt: a text or its token ids, or several of either.
    - max_tokens: the largest number of generated tokens.
    - logprobs: how many likeliest tokens to return with log probabilities; None returns no log
      probabilities.
    - echo: return the prompt before each continuation.
    """

    prompt: str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, ...], ...] = ""
    max_tokens: Count = 16
    logprobs: OfFive | None = None
    echo: bool = False

    def check(self) -> None:
        super().check()
        if self.echo and self.stream:
            raise Refused("echo = true is for stream = false", "echo")

    @property
    def tops(self) -> int | None:
        """How many likeliest tokens are asked for; None where no log probabilities are."""
        return self.logprobs


@dataclasses.dataclass(frozen=True)
class Chat(Sampled):
    """The body of /v1/chat/completions.

    - messages: the conversation so far.
    - max_tokens, max_completion_tokens: the largest number of generated tokens. If both are given,
      max_completion_tokens counts.
    - logprobs: return log probabilities; top_logprobs: the number of likeliest tokens to return
      with them.
    - tools: the functions that the model may call; tool_choice: whether it may or must.
    """

    messages: tuple[dict, ...] = ()
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: OfTwenty | None = None
    tools: tuple[dict, ...] = ()
    tool_choice: str | dict | None = None

    @property
    def choice(self) -> str | dict:
        """The tool choice, with OpenAI's default: "auto" where there are tools, else "none"."""
        return self.tool_choice or ("auto" if self.tools else "none")

    @property
    def tops(self) -> int | None:
        """How many likeliest tokens are asked for; None where no log probabilities are."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most(self) -> int | None:
        """The largest number of generated tokens, or None."""
        return self.max_completion_tokens or self.max_tokens

    def check(self) -> None:
        super().check()
        if not self.messages:
            raise Refused("messages is empty; it must hold at least one message", "messages")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs is for logprobs = true", "top_logprobs")
        tools.check(self.tools, self.choice)
        if tools.must_call(self.tools, self.choice) and (self.regex or self.schema() is not None):
            raise Refused("tool_choice asks for a call, and the answer is held to another form", "tool_choice")


def parse[T](cls: type[T], body: Any, prefix: str = "") -> T:
    """The request in a JSON body. Raises Refused for a wrong field, and the error names the field.

    cls: the class of the body; prefix: precedes the names of nested fields in errors.
    """
    if not isinstance(body, dict):
        raise Refused(f"{prefix or 'the body'} is {type(body).__name__}; it must be an object")
    hints, found = ranges.hints(cls), {}
    for name, value in body.items():
        # OpenAI's clients send null for fields that are not set.
        if name in CALLER or (value is None and (name in NEUTRAL or name in hints)):
            continue
        if name in NEUTRAL:
            # Python takes true for 1 and false for 0.
            if value != NEUTRAL[name] or isinstance(value, bool) != isinstance(NEUTRAL[name], bool):
                raise Refused(f"{prefix}{name} is not supported; leave it out", prefix + name)
        elif name not in hints:
            raise Refused(f"unknown field {(prefix + name)[:60]!r}{nearest(name[:60], hints)}", (prefix + name)[:60])
        else:
            _check(prefix + name, value, hints[name])
            found[name] = value
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := next((name for name in needed if name not in found), ""):
        raise Refused(f"{prefix}{missing} is missing", prefix + missing)
    return cls(**found)


def _check(name: str, value: Any, hint: Any) -> None:
    try:
        ranges.check_value(name, value, hint)
    except ValueError as error:
        raise Refused(str(error), name) from None
    except OverflowError:
        raise Refused(f"{name} is too large a number", name) from None


def parse_checked[T](cls: type[T], body: Any) -> T:
    """The request in a JSON body, whose values also passed `check`."""
    found = parse(cls, body)
    found.check()
    return found
