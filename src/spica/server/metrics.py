"""Prometheus metrics of one application."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spica.predictor import Outcome
from spica.server.pool import ModelPool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100, 300)
"""Bucket limits in seconds; 100 s is where Label Studio gives a prediction up."""


class _EngineCollector(Collector):
    """The engines' own counters, of all models together, read when asked."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        images, remembered, failures, seconds = self._pool.past
        ready = self._pool.default.engine.status.state == "ready"
        engines = [predictor.engine.status for predictor in self._pool.predictors]
        admitted, waiting = sum(engine.admitted for engine in engines), sum(engine.waiting for engine in engines)
        images += sum(engine.images for engine in engines)
        remembered += sum(engine.remembered for engine in engines)
        failures += sum(engine.failures for engine in engines)
        seconds += sum(engine.seconds for engine in engines)
        yield GaugeMetricFamily("spica_model_ready", "1 when the model is loaded.", value=ready)
        yield GaugeMetricFamily("spica_models", "Versions that are loaded.", value=len(engines))
        yield GaugeMetricFamily("spica_queue_tasks", "Tasks in requests under way.", value=admitted)
        yield GaugeMetricFamily("spica_queue_images", "Images that wait for the network.", value=waiting)
        yield CounterMetricFamily("spica_images", "Images that the network has computed.", value=images)
        yield CounterMetricFamily("spica_images_remembered", "Answers given from memory.", value=remembered)
        yield CounterMetricFamily("spica_image_failures", "Images the network failed on.", value=failures)
        yield CounterMetricFamily("spica_network_seconds", "Seconds the network has computed.", value=seconds)


class Metrics:
    """Counters of requests and tasks, and the engines' own, in a registry of their own."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(pool))
        self._requests = Counter(
            "spica_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "spica_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._tasks = Counter("spica_tasks", "Tasks answered, by outcome.", ["outcome"], registry=self.registry)
        self._boxes = Counter("spica_boxes", "Boxes shown.", registry=self.registry)

    def count_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count predicted and failed tasks, and boxes."""
        for outcome in outcomes:
            self._tasks.labels("failed" if outcome.error is not None else "predicted").inc()
            self._boxes.inc(outcome.boxes)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Count and time every request to ``app``."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status, started = 500, time.perf_counter()

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                # The route's pattern, never the path: a client must not be able to make new series.
                route = getattr(scope.get("route"), "path", "other").rstrip("/") or "/"
                self._requests.labels(route, str(status)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - started)

        return measured
