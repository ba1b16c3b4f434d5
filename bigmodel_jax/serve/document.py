"""Builds the server's OpenAPI document (/openapi.json) from the classes that requests are checked
with.
"""

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from bigmodel_jax.core import ranges
from bigmodel_jax.core.ranges import Range
from bigmodel_jax.serve.others import Class, Embedding, Picture
from bigmodel_jax.serve.requests import Chat, Completion
from bigmodel_jax.serve.tokens import Detokenize, Tokenize

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
BODIES: dict[str, tuple[type, tuple[str, ...]]] = {
    "/v1/completions": (Completion, ("model", "prompt")),
    "/v1/chat/completions": (Chat, ("model", "messages")),
    "/v1/embeddings": (Embedding, ("model", "input")),
    "/tokenize": (Tokenize, ("prompt",)),
    "/detokenize": (Detokenize, ("tokens",)),
    "/classify": (Class, ("model",)),
    "/images": (Picture, ("model", "prompt")),
}
"The class of each route's body, and the fields that it must have."
READS = {
    "/health": ("alive",),
    "/ready": ("ready", "not ready"),
    "/v1/models": (),
    "/tokenizer_info": (),
    "/openapi.json": (),
}
REFUSALS = {
    "400": "a field is wrong, and named",
    "401": "the key is missing or wrong",
    "404": "the model is not served",
    "408": "the body was too slow",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "422": "the form became too much work",
    "429": "too many texts wait",
    "503": "the device has failed",
    "504": "the answer took too long",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {path: {"get": _operation(path, {})} for path in READS}
    for path, (cls, _) in BODIES.items():
        schema = {"$ref": f"#/components/schemas/{cls.__name__}"}
        body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        paths[path] = {"post": _operation(path, body)}
        paths[path]["post"]["responses"] |= {
            status: _answer(text, {"$ref": "#/components/schemas/Error"}) for status, text in REFUSALS.items()
        }
    paths["/ready"]["get"]["responses"]["503"] = _answer("not ready", {"type": "object"})
    schemas = {cls.__name__: _object(cls, required) for cls, required in BODIES.values()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "bigmodel_jax serve", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],  # {}: a server without --key needs none
    }


def _operation(path: str, more: dict) -> dict[str, Any]:
    return {"operationId": path.strip("/"), "responses": {"200": _answer("the answer", {"type": "object"})}} | more


def _answer(text: str, schema: dict) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _object(cls: type, required: tuple[str, ...]) -> dict[str, Any]:
    """The JSON schema of a class: every field with its type and range.

    required: the fields that a body must have.
    """
    hints = ranges.hints(cls)
    properties = {field.name: _optional(_schema(hints[field.name])) for field in dataclasses.fields(cls)}
    # A required field may not be null, so its schema replaces the optional one.
    for name in required:
        properties[name] = _schema(hints[name])
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": True}


def _optional(schema: dict) -> dict:
    """Allows null as well, which means the same as leaving the field out."""
    return {"anyOf": [schema, {"type": "null"}]}


def _schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type annotation."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(part) for part in parts]}
    if hint is type(None):
        return {"type": "null"}
    if origin is tuple:
        return {"type": "array", "items": _schema(parts[0])}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is typing.Annotated:
        found = _schema(parts[0])
        for allowed in parts[1:]:
            found |= _limits(allowed) if isinstance(allowed, Range) else {}
        return found
    return {"type": PLAIN[hint]}


def _limits(allowed: Range) -> dict[str, float]:
    found = {}
    if allowed.least > -math.inf:
        found["exclusiveMinimum" if allowed.above else "minimum"] = allowed.least
    if allowed.most < math.inf:
        found["exclusiveMaximum" if allowed.below else "maximum"] = allowed.most
    return found
