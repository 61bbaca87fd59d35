"""Around the routes: failures leave the server in one JSON shape, never as a traceback, and requests are counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spica.errors import MethodNotAllowedError, NotFoundError, QueueFullError, RequestError, SpicaError
from spica.labelstudio.protocol import bad_request
from spica.predictor import Outcome
from spica.server.pool import ModelPool

logger = logging.getLogger(__name__)

_HTTP_ERRORS = {error.status: error for error in (NotFoundError, MethodNotAllowedError)}


def error_response(error: SpicaError, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the one shape, with the status of its kind, and Retry-After where it can be known."""
    if isinstance(error, QueueFullError):
        headers = {**(headers or {}), "Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.as_json(), status_code=error.status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer Spica's errors, FastAPI's and Starlette's in the one shape."""

    @app.exception_handler(SpicaError)
    async def known(_: Request, error: SpicaError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        details = error.errors()
        if details[0]["loc"][0] == "body":
            return error_response(_bad_body(request, details, await request.body()))
        refused = RequestError(
            "a part of the address can't be read",
            where=_place(request),
            expected=f"{details[0]['loc'][-1]}: {details[0]['msg']}",
            got=str(details[0].get("input"))[:100],
            hint="see /docs for the routes",
        )
        return error_response(refused)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        cause = error.__cause__  # FastAPI wraps what was raised while the body was read
        if isinstance(cause, SpicaError):
            return error_response(cause)
        if isinstance(cause, ValueError | RecursionError):
            return error_response(_no_json(request, cause))
        kind = _HTTP_ERRORS.get(error.status_code, RequestError)
        refused = kind(str(error.detail), where=_place(request), hint="see /docs for the routes")
        return JSONResponse(refused.as_json(), status_code=error.status_code, headers=error.headers)


def _place(request: Request) -> str:
    return f"{request.method} {request.url.path}"


def _no_json(request: Request, cause: object) -> RequestError:
    return RequestError(
        "the request's body is not JSON", where=_place(request), expected="a JSON object in UTF-8", got=str(cause)[:200]
    )


def _bad_body(request: Request, details: Sequence[Any], body: bytes) -> RequestError:
    first = details[0]
    if first["type"] == "json_invalid" or not body:
        return _no_json(request, first.get("ctx", {}).get("error", "an empty body"))
    if len(first["loc"]) == 1:
        got = "null" if first["input"] is None else type(first["input"]).__name__
        what, where = "the request's body is not a JSON object", _place(request)
        return RequestError(what, where=where, expected="a JSON object", got=got)
    return bad_request([{**detail, "loc": detail["loc"][1:]} for detail in details])


class LastResortMiddleware:
    """An unforeseen failure becomes a sentence for the client and a traceback in the log.

    Starlette's own last resort raises the failure again behind its answer, at which uvicorn hangs up; a client that
    keeps its connection would lose its next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:  # nobody is left to answer
            return
        except Exception:
            if scope["type"] != "http":
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if begun:  # too late for an answer: hanging up tells the client that what it has is not whole
                raise
            hint = "see the server's log and report it"
            error = SpicaError("the server failed on this request", where=scope["path"], hint=hint)
            await error_response(error)(scope, receive, send)


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100, 300)
"""Bucket limits in seconds; 100 s is where Label Studio gives a prediction up."""


class _EngineCollector(Collector):
    """The engines' own counters, of all models together, read when asked."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        engines = [predictor.engine.status for predictor in self._pool.predictors]
        images, remembered, failures, seconds = (
            past + sum(getattr(engine, name) for engine in engines)
            for past, name in zip(self._pool.past, ("images", "remembered", "failures", "seconds"), strict=True)
        )
        ready = self._pool.default.engine.status.state == "ready"
        admitted, waiting = sum(engine.admitted for engine in engines), sum(engine.waiting for engine in engines)
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
