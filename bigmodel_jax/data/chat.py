"""Chat templates, rendered as Hugging Face renders them, and which tokens of a conversation the assistant wrote."""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

Message = dict[str, str]  # {"role": "user" | "assistant" | "system", "content": ...}


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    """The template in a sandbox, with the functions and settings of transformers' chat_template_utils."""
    try:
        from jinja2.exceptions import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ValueError("chat templates need the package jinja2: uv sync --extra pretrained") from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str):
        raise ValueError(f"chat template: {message}")

    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"chat template: {error.message} (line {error.lineno})") from None


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    special_tokens: dict[str, str] | None = None,
) -> str:
    """The conversation as the model reads it; ValueError for what the template refuses."""
    from jinja2.exceptions import TemplateError

    try:
        return _compile(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **(special_tokens or {})
        )
    except TemplateError as error:
        raise ValueError(f"chat template: {error}") from None


def encode(template: str, messages: Sequence[Message], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, 1.0 where the assistant wrote the token, its end of turn included), each (T,).

    A turn is what the rendering gains from the generation prompt before it to its end. ValueError where the template
    does not only add text from turn to turn, since then no mask exists.
    """
    ids: list[int] = []
    mask: list[float] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(template, messages[:i], add_generation_prompt=True)
        after = render(template, messages[: i + 1])
        if not (before.startswith(done) and after.startswith(before)):
            raise ValueError("chat template: it rewrites earlier turns, so the assistant's tokens cannot be told apart")
        for text, weight in ((before[len(done) :], 0.0), (after[len(before) :], 1.0)):
            piece = tokenizer.encode_chat(text)
            ids += piece
            mask += [weight] * len(piece)
        done = after
    return np.array(ids, np.int32), np.array(mask, np.float32)
