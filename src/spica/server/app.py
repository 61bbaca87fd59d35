"""The application: routes of a Label Studio ML backend, health, metrics, jobs, learning and the page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from spica import __version__
from spica.errors import (
    AuthenticationError,
    LabelStudioRefusedError,
    LabelStudioUnreachableError,
    NotFoundError,
    RequestError,
)
from spica.http import http_client
from spica.labelstudio.backup import backup
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.protocol import PredictRequest, SetupRequest, WebhookRequest
from spica.predictor import Outcome
from spica.server.jobs import Jobs, PrelabelRequest
from spica.server.learning import Learning
from spica.server.learning_routes import add_learning, learning_state
from spica.server.middleware import LastResortMiddleware, Metrics, add_error_handlers, error_response
from spica.server.page import Page
from spica.server.security import FORWARDED, Access, AccessMiddleware, label_studio_token
from spica.server.service import Service
from spica.settings import Settings

logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
_FORWARDED_ACTION = "delete_tasks_predictions"


def create_app(service: Service, settings: Settings, *, host: str) -> FastAPI:
    """The ASGI application around a service, for a server bound to ``host``; closes the service when it ends."""
    metrics = Metrics(service.pool)
    jobs = Jobs(service, settings)
    learning = Learning(service, jobs, settings)
    access = Access.of(settings, host)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.pool.start(service.workers)
        learning.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPIOffline(
        title="Spica",
        version=__version__,
        description="A Label Studio ML backend that proposes boxes. Errors have one shape: "
        "`{error: {code, message, where, expected, got, hint}}`.",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.jobs = jobs
    app.state.is_stopping = lambda: False  # whoever runs the server says when
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    add_error_handlers(app)
    app.add_middleware(AccessMiddleware, access=access, max_request_bytes=settings.max_request_bytes)
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(metrics.middleware)
    _add_backend(app, service, learning, metrics, access, settings.max_tasks)
    _add_jobs(app, service, jobs)
    add_learning(app, service, learning)
    _add_state(app, service, jobs, learning)
    _add_forwarding(app, settings)
    return app


def _add_backend(
    app: FastAPI, service: Service, learning: Learning, metrics: Metrics, access: Access, max_tasks: int
) -> None:
    """The routes that Label Studio asks. Those that are plain functions run on a thread each."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What works and what does not, from memory."""
        return service.health()

    @app.post("/setup")
    def setup(body: SetupRequest) -> dict[str, Any]:
        """Tell which version a project's tasks are answered with; no network is asked, and no weights are read."""
        state = service.setup(body)
        classes = service.pool.predictor(state.project).classes
        return {"model_version": state.version, "classes": list(classes), "problems": list(state.problems)}

    @app.post("/predict")
    async def predict(body: PredictRequest) -> Response:
        """Boxes for each task, in order; waits while the model is loading.

        A task that fails alone has an `error` instead of a `result`: Label Studio stores nothing for it and will ask
        again. When all fail, the status is that of the first reason.
        """
        if len(body.tasks) > max_tasks:
            raise RequestError(
                "too many tasks in one request",
                where="/predict",
                expected=f"at most {max_tasks} tasks",
                got=f"{len(body.tasks)} tasks",
                hint="select fewer tasks at once, or raise SPICA_MAX_TASKS",
            )
        pool = service.batch_pool if len(body.tasks) > 1 else service.opened_pool
        outcomes = await asyncio.get_running_loop().run_in_executor(pool, service.predict, body)
        metrics.count_outcomes(outcomes)
        return _answer(outcomes)

    @app.post("/webhook")
    async def webhook(request: Request, body: WebhookRequest) -> dict[str, Any]:
        """Take note of an event of Label Studio's; answers at once, from memory.

        What is new is counted in Label Studio afterwards. `job` is the training under way, if the event asks for one.
        """
        answer = learning.hear(body, proven=access.proves(request))
        logger.info("project %s: event %s, %s", body.project_key, body.action[:60], answer["heard"])
        return answer

    @app.get("/versions")
    async def versions() -> dict[str, list[str]]:
        """The versions that this server answers with, the latest first."""
        return {"versions": service.versions}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Counters and latencies in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_jobs(app: FastAPI, service: Service, jobs: Jobs) -> None:
    """The routes of the bulk jobs."""

    @app.post("/jobs/prelabel", status_code=202)
    async def prelabel(request: Request, body: PrelabelRequest) -> dict[str, Any]:
        """Predict the tasks of a project that have no prediction of the served version, and store the predictions.

        Answers with the job, also where one works on the project already; `started_now` tells which. With `dry_run`
        only `total` is told. Label Studio's token comes in `X-Api-Key` or `Authorization: Token …`, unless the server
        has one of its own.
        """
        token, loop = label_studio_token(request), asyncio.get_running_loop()
        if body.dry_run:
            spec = await loop.run_in_executor(service.batch_pool, jobs.look, body, token)
            return {
                "project": body.project,
                "title": spec.project.title,
                "version": spec.prediction.version,
                "total": spec.total,
                "annotated": spec.annotated,
            }
        job, started_now = await loop.run_in_executor(service.batch_pool, jobs.start, body, token)
        return {**job.as_json(), "started_now": started_now}

    @app.get("/jobs")
    async def list_jobs() -> dict[str, Any]:
        """The jobs since the server's start, the latest first."""
        return {"jobs": [job.as_json() for job in jobs.all]}

    @app.get("/jobs/{job}")
    async def show_job(job: str) -> dict[str, Any]:
        """How far a job is: tasks, failures, speed in images a second, seconds to go."""
        return jobs.get(job).as_json()

    @app.get("/jobs/{job}/failures")
    def show_failures(job: str, after: int = 0) -> dict[str, Any]:
        """The failed tasks of a job behind the first `after`, at most 1000, each as one line of JSON."""
        lines, complete = jobs.get(job).failures_after(max(0, after))
        return {"lines": lines, "complete": complete}

    @app.post("/jobs/{job}/stop", status_code=202)
    async def stop_job(job: str) -> dict[str, Any]:
        """Let a job store what is computed already and end; what is left is done when it is started again."""
        running = jobs.get(job)
        running.stop_signal.set()
        return running.as_json()


def _add_state(app: FastAPI, service: Service, jobs: Jobs, learning: Learning) -> None:
    """The page, the state as a whole, and its changes."""
    page = Page(service, jobs, learning)

    @app.get("/", response_class=HTMLResponse)
    def show_page() -> str:
        """A page that says what is served, and in what state."""
        return page.render()

    @app.get("/status", response_class=HTMLResponse, include_in_schema=False)
    def status() -> str:
        return page.render_status()

    @app.get("/state")
    def state() -> dict[str, Any]:
        """Health, jobs, trainings and the last failed tasks."""
        return {
            **service.health(),
            "learning": learning_state(service, learning),
            "label_studio": jobs.label_studio_url,
            "jobs": [job.as_json() for job in jobs.all],
            "failures": [failure.as_json() for failure in service.failures],
        }

    @app.get("/events", response_class=EventSourceResponse)
    async def events() -> AsyncIterator[ServerSentEvent]:
        """The page's changing part, sent when it changes (server-sent events)."""
        async for html in page.changes(lambda: bool(app.state.is_stopping())):
            yield ServerSentEvent(event="page", data=html)


def _add_forwarding(app: FastAPI, settings: Settings) -> None:
    """One action of Label Studio's, taken on the model's port: a published tutorial aims it here."""

    @app.post(FORWARDED)
    @app.post(f"{FORWARDED}/", include_in_schema=False)
    async def delete_predictions(request: Request) -> Response:
        """Pass `?id=delete_tasks_predictions&project=N`, and no other action, to Label Studio, with your own
        authorization. What is deleted is first written to a file.
        """
        authorization, body = request.headers.get("authorization"), await request.body()
        return await asyncio.to_thread(_forward, settings, dict(request.query_params), authorization, body)


class _CallersAuth(httpx.Auth):
    """The authorization that came with the request, as it came: never ours."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def auth_flow(self, request: httpx.Request):  # type: ignore[no-untyped-def]
        request.headers["Authorization"] = self._authorization
        yield request


def _forward(settings: Settings, query: Mapping[str, str], authorization: str | None, body: bytes) -> Response:
    """Label Studio's own answer to the action, after a backup of what it deletes.

    What narrows it (``view``, ``query``, the body) goes along, or it would delete more than was asked for.
    """
    url, project = settings.label_studio_url.rstrip("/"), query.get("project", "")
    if query.get("id") != _FORWARDED_ACTION:
        raise RequestError(
            "only one action of Label Studio's is forwarded",
            where=FORWARDED,
            expected=f"id={_FORWARDED_ACTION}",
            got=f"id={query.get('id', '')[:60]}",
            hint=f"send other requests to Label Studio itself, at {url}",
        )
    if not project.isdecimal() or len(project) > 18:
        raise RequestError(
            "the project's number is missing", where=FORWARDED, expected="project=N", got=f"project={project[:60]}"
        )
    if authorization is None:
        raise AuthenticationError(
            "the request carries no authorization",
            where=FORWARDED,
            expected="the header Authorization: Token … of a user of Label Studio",
            hint="copy the access token from Label Studio's page Account & Settings",
        )
    auth = _CallersAuth(authorization)
    path = settings.data_dir / "backups" / f"project-{int(project)}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
    with LabelStudioClient(url, None, auth=auth) as client:
        try:
            client.project(int(project))
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != httpx.codes.NOT_FOUND:
                raise
            hint = "its number is in its address"
            raise NotFoundError(f"there is no project {project}", where=FORWARDED, hint=hint) from None
        count = backup(client, int(project), None, path)
    logger.info("%d predictions of project %s written to %s before they are deleted", count, project, path)
    return _post(url, {**query, "project": str(int(project))}, auth, body)


def _post(url: str, query: Mapping[str, str], auth: httpx.Auth, body: bytes) -> Response:
    headers = {"Content-Type": "application/json"}
    try:
        with http_client(url, auth=auth, timeout=300) as http:
            answer = http.post(f"{url}{FORWARDED}/", params=query, content=body or b"{}", headers=headers)
    except httpx.HTTPError as error:
        raise LabelStudioUnreachableError(
            "Label Studio does not answer",
            where=url,
            got=type(error).__name__,
            hint="is it running there? Set LABEL_STUDIO_URL where it is not",
        ) from None
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))


def _answer(outcomes: list[Outcome]) -> Response:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        return error_response(errors[0])
    results = [outcome.prediction if outcome.error is None else outcome.error.as_json() for outcome in outcomes]
    return JSONResponse({"results": results})
