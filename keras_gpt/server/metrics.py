"""`Metrics`: what Prometheus reads of a server."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from keras_gpt.server.scheduler import Scheduler

_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """Counters of one server.

    Args:
        scheduler: Whose queue and slots are shown.
        num_slots: How many slots there are.

    References:
        - [Names of metrics](https://prometheus.io/docs/practices/naming/)
    """

    def __init__(self, scheduler: Scheduler, num_slots: int):
        self._registry = registry = CollectorRegistry()
        options = {"namespace": "keras_gpt", "registry": registry}
        self.requests = Counter(
            "requests", "Requests answered.", ["route", "status"], **options
        )
        self.prompt_tokens = Counter(
            "prompt_tokens", "Tokens of prompts that were answered.", **options
        )
        self.reused_tokens = Counter(
            "reused_tokens", "Tokens of prompts that were not read again.", **options
        )
        self.new_tokens = Counter("new_tokens", "Tokens written.", **options)
        self.first_token_seconds = Histogram(
            "first_token_seconds",
            "Time from a request to its first token.",
            buckets=_SECONDS,
            **options,
        )
        self.request_seconds = Histogram(
            "request_seconds",
            "Time from a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **options,
        )
        for name, help_, value in (
            ("slots", "Answers that can be written at once.", lambda: num_slots),
            ("running", "Answers being written.", lambda: scheduler.num_running),
            ("waiting", "Answers that wait.", lambda: scheduler.num_waiting),
        ):
            Gauge(name, help_, **options).set_function(value)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
