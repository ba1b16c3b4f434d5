"""The server's options: where it listens, how much it accepts, and how long it waits."""

import dataclasses
from typing import Annotated, Literal

from bigmodel_jax.core.ranges import Count, CountOrZero, Positive, Range

Port = Annotated[int, Range("0 or more and at most 65535", 0, 65_535)]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# With --length 0 a slot has room for at most this many tokens, even if the model allows more.
USUAL_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """The server's options. Sizes are in tokens or bytes, times in seconds."""

    host: str = "127.0.0.1"  # the address to listen on; 0.0.0.0 = all addresses of this machine
    port: Port = 8000  # the port to listen on; 0 = any free port
    slots: Count = 16  # texts that are generated at the same time
    length: CountOrZero = 0  # tokens of a prompt and its answer; 0 = the model's maximum, at most 2048
    piece: CountOrZero = 512  # tokens of a prompt that are read between two steps; 0 = all
    prefixes: CountOrZero = 4  # prompts cached for prompts that begin alike; each takes a slot's memory
    cache: Literal["compute", "int8"] = "compute"  # type of cached keys and values; int8: a scale per head and position
    key: str = ""  # the API key that clients must send; empty: BIGMODEL_SERVE_KEY, or none
    queue: CountOrZero = 256  # texts that may wait for a slot; more are refused
    max_body: Count = 4 << 20  # bytes of a request's body
    body_seconds: Positive = 10.0  # a request's head and its body must each arrive within this time
    request_seconds: Positive = 600.0  # an answer must be complete within this time
    drain_seconds: Positive = 30.0  # how long answers that have begun may go on after SIGTERM
    stuck_seconds: Positive = 300.0  # a step that takes longer makes /ready fail
    connections: Count = 1024  # open connections at the same time
