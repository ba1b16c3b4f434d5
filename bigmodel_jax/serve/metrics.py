"""The metrics that Prometheus reads at /metrics."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self):
        # The global registry would refuse the names of a second server in one process, as in tests.
        self._registry = registry = CollectorRegistry()
        own = {"registry": registry, "namespace": "bigmodel"}
        self.requests = Counter("requests", "answered requests", ("route", "status"), **own)
        self.seconds = Histogram(
            "request_seconds", "of a request, to its last byte", ("route",), buckets=SECONDS, **own
        )
        self.first = Histogram("first_token_seconds", "from a request to its first token", buckets=SECONDS, **own)
        self.between = Histogram("token_seconds", "between two tokens of a reply", buckets=STEP_SECONDS, **own)
        self.prompt_tokens = Counter("prompt_tokens", "tokens of prompts", **own)
        self.generated_tokens = Counter("generated_tokens", "tokens that were generated", **own)
        self.open = Gauge("texts", "texts that are generated or wait for a slot", **own)
        self.slots = Gauge("slots", "texts that can be generated at a time", **own)
        self.ready = Gauge("ready", "1 where /ready says so", **own)

    def token(self, began: float, last: float | None) -> float:
        """Counts one token of a reply. Returns the current time, which the next call gets as
        `last`.

        began: when the reply was asked for; last: the time of the reply's previous token, or None.
        """
        now = time.monotonic()
        self.generated_tokens.inc()
        if last is None:
            self.first.observe(now - began)
        else:
            self.between.observe(now - last)
        return now

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
