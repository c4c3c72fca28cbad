"""What a server counts, for Prometheus."""

from collections.abc import Callable
from typing import Any

import prometheus_client as prometheus

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters and histograms of one server.

    Attributes:
      registry: all of them, and what is added to it.
      requests: answered requests, by path and status.
      seconds: from a request's first byte to its answer's last, by path.
      stages: seconds by stage: "read" (adapter and tokens), "queue", "call", "begin" (inputs of
        texts encoded), "step" (tokens added to all texts).
      rows: rows of a call.
      texts: texts that a step extends.
    """

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        about = "Answered requests"
        self.requests = prometheus.Counter("adalink_requests", about, ["path", "status"], **kept)
        about = "Seconds from a request to the end of its answer"
        self.seconds = prometheus.Histogram(
            "adalink_request_seconds", about, ["path"], buckets=_SECONDS, **kept
        )
        self.stages = prometheus.Histogram(
            "adalink_stage_seconds", "Seconds by stage", ["stage"], buckets=_SECONDS, **kept
        )
        self.rows = prometheus.Histogram(
            "adalink_call_rows", "Rows of a call", buckets=_ROWS, **kept
        )
        self.texts = prometheus.Histogram(
            "adalink_step_texts", "Texts that a step extends", buckets=_ROWS, **kept
        )

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Adds a number that is asked for when it is read; `value` is a function."""
        prometheus.Gauge(name, about, registry=self.registry).set_function(value)

    def exposition(self) -> bytes:
        """Returns all of them in Prometheus's text format."""
        return prometheus.generate_latest(self.registry)
