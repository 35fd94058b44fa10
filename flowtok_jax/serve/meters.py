"""Numbers of the service for Prometheus, and the wrapper that counts requests."""

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_ANSWER = 499  # status of a request whose client went away
SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)


class Meters:
    """Counters of one service, in a registry of their own.

    Args:
        waiting: rows that wait in the queue, at any moment.
    """

    def __init__(self, waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "flowtok_requests_total",
            "Requests, by path and status; 499 where the client went away.",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "flowtok_request_seconds",
            "Seconds from a request to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "flowtok_batch_rows",
            "Rows of a batch.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "flowtok_batch_seconds",
            "Seconds of a batch.",
            buckets=SECONDS,
            registry=self.registry,
        )
        Gauge(
            "flowtok_queue_rows", "Rows that wait.", registry=self.registry
        ).set_function(waiting)

    def observe_batch(self, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Returns all numbers in the text format of Prometheus."""
        return generate_latest(self.registry)

    def count_requests(self, app: ASGIApp, paths: set[str]) -> ASGIApp:
        """Wraps an application, so that its requests are counted.

        Args:
            paths: known ones; a stranger's own would be a number each.
        """

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            status = NO_ANSWER
            begun = time.perf_counter()

            async def send_and_look(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            # Also where the application fails, or its client goes away.
            try:
                await app(scope, receive, send_and_look)
            finally:
                path = scope["path"] if scope["path"] in paths else "other"
                self._requests.labels(path, status).inc()
                self._seconds.labels(path).observe(time.perf_counter() - begun)

        return wrapped
