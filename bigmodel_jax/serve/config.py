"""What the server is told: where it listens, how much it takes on, and how long it waits."""

import dataclasses
from typing import Annotated, Literal

from bigmodel_jax.core.ranges import Count, CountOrZero, Positive, Range

Port = Annotated[int, Range("0 or more and at most 65535", 0, 65_535)]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Where --length is 0, a slot has room for no more tokens than this, whatever the model allows.
USUAL_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Sizes are in tokens or bytes, times in seconds."""

    host: str = "127.0.0.1"  # the address to listen on; 0.0.0.0 is every one of this machine
    port: Port = 8000  # 0 = one that is free
    slots: Count = 16  # texts that are generated at a time
    length: CountOrZero = 0  # tokens of prompt and answer together; 0 = the model's own, at most 2048
    piece: CountOrZero = 512  # tokens of a prompt that are read between two steps; 0 = all
    prefixes: CountOrZero = 4  # prompts that are kept for those that begin alike, with the memory of a slot each
    cache: Literal["compute", "int8"] = "compute"  # of keys and values; int8: each head and place has a scale
    key: str = ""  # what clients must send as their API key; empty: BIGMODEL_SERVE_KEY, or none
    queue: CountOrZero = 256  # texts that wait for a slot; one more is refused
    max_body: Count = 4 << 20  # bytes of a request
    body_seconds: Positive = 10.0  # a request's head and its body must arrive within this time each
    request_seconds: Positive = 600.0  # an answer must be complete within this time
    drain_seconds: Positive = 30.0  # answers that have begun may go on so long after SIGTERM
    stuck_seconds: Positive = 300.0  # a step that takes longer ends /ready
    connections: Count = 1024  # connections at a time
