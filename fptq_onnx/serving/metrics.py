"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.http = Counter(
            "fptq_http_requests", "Requests answered, by route and status; 499: the client left",
            ["route", "status"], registry=registry,
        )  # fmt: skip
        self.generations = Counter(
            "fptq_generations", "Texts begun, by how they ended", ["end"], registry=registry
        )
        self.prompt_tokens = Counter("fptq_prompt_tokens", "Tokens of prompts", registry=registry)
        self.generated_tokens = Counter(
            "fptq_generated_tokens", "Tokens generated", registry=registry
        )
        self.request_seconds = Histogram(
            "fptq_request_seconds", "From a request's arrival to the end of its text",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "fptq_first_token_seconds", "From a request's arrival to its first token",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._step_seconds = Histogram(
            "fptq_decode_step_seconds", "Of one decode step: a token for each running request",
            buckets=_STEP_SECONDS, registry=registry,
        )  # fmt: skip
        self._step_rows = Histogram(
            "fptq_decode_step_requests", "Requests in a decode step", buckets=_ROWS,
            registry=registry,
        )  # fmt: skip

    def watch(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Show how many requests there are; asked for when somebody looks."""
        for name, help_, count in (
            ("fptq_requests_waiting", "Requests that wait for a place in the batch", waiting),
            ("fptq_requests_running", "Requests in the batch", running),
        ):
            Gauge(name, help_, registry=self._registry).set_function(count)

    def step(self, rows: int, seconds: float) -> None:
        """Count a decode step."""
        self._step_rows.observe(rows)
        self._step_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
