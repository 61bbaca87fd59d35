"""The application: routes of a Label Studio ML backend, health, metrics and the page."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from spica import __version__
from spica.errors import MethodNotAllowedError, NotFoundError, RequestError, SpicaError
from spica.labelstudio.protocol import PredictRequest, SetupRequest, WebhookRequest, bad_request
from spica.predictor import Outcome
from spica.server.border import LastResortMiddleware, error_response
from spica.server.events import Latest, stream
from spica.server.forward import Forwarder
from spica.server.jobs import Jobs, PrelabelRequest, failures_after
from spica.server.learning import Learning
from spica.server.learning_routes import TrainingRequest, add_learning, learning_state
from spica.server.metrics import Metrics
from spica.server.page import render_page, render_status
from spica.server.security import Access, AccessMiddleware, label_studio_token, read_body
from spica.server.service import Service

logger = logging.getLogger(__name__)

_HTTP_ERRORS = {error.status: error for error in (NotFoundError, MethodNotAllowedError)}
_STATIC = Path(__file__).parent / "static"
_T = TypeVar("_T")
_Body = TypeVar("_Body", bound=BaseModel)


def create_app(
    service: Service,
    *,
    forwarder: Forwarder,
    jobs: Jobs,
    learning: Learning,
    max_request_bytes: int,
    max_tasks: int,
    access: Access,
) -> FastAPI:
    """The ASGI application around a service.

    Args:
        service: answers; closed by the caller.
        forwarder: passes the one forwarded action to Label Studio.
        jobs: the bulk jobs; closed when the application ends.
        learning: the trainings; begins and ends with the application.
        max_request_bytes: larger bodies are refused.
        max_tasks: requests with more tasks are refused.
        access: whom to answer.
    """
    metrics = Metrics(service.pool)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.pool.start()
        learning.start()
        yield
        await asyncio.to_thread(learning.close)
        await asyncio.to_thread(jobs.close)
        service.close()

    app = FastAPIOffline(
        title="Spica",
        version=__version__,
        description="A Label Studio ML backend that proposes boxes. Errors have one shape: "
        "`{error: {code, message, where, expected, got, hint}}`.",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.jobs = jobs
    app.state.learning = learning
    app.state.is_stopping = lambda: False  # whoever runs the server says when
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _add_error_handlers(app)
    app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(metrics.middleware)

    async def body_of(request: Request, model: type[_Body]) -> _Body:
        data = await read_body(request, max_request_bytes)
        return await asyncio.to_thread(_parse, data, model, request.url.path)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What works and what does not, from memory."""
        return service.health()

    @app.post("/setup", openapi_extra=_body_schema(SetupRequest))
    async def setup(request: Request) -> dict[str, Any]:
        """Tell which version a project's tasks are answered with; no network is asked, and no weights are read."""
        body = await body_of(request, SetupRequest)

        def answer() -> dict[str, Any]:
            state = service.setup(body)
            classes = service.pool.predictor(state.project).classes
            return {"model_version": state.version, "classes": list(classes), "problems": list(state.problems)}

        return await asyncio.to_thread(answer)  # a project's first question looks for its version on the disk

    @app.post("/predict", openapi_extra=_body_schema(PredictRequest))
    async def predict(request: Request) -> Response:
        """Boxes for each task, in order; waits while the model is loading.

        A task that fails alone has an `error` instead of a `result`: Label Studio stores nothing for it and will ask
        again. When all fail, the status is that of the first reason.
        """
        body = await body_of(request, PredictRequest)
        if len(body.tasks) > max_tasks:
            raise RequestError(
                "too many tasks in one request",
                where="/predict",
                expected=f"at most {max_tasks} tasks",
                got=f"{len(body.tasks)} tasks",
                hint="select fewer tasks at once, or raise SPICA_MAX_TASKS",
            )
        pool = service.batch_pool if len(body.tasks) > 1 else service.opened_pool
        outcomes = await _run(pool, service.predict, body)
        metrics.count_outcomes(outcomes)
        return _answer(outcomes)

    @app.post("/webhook", openapi_extra=_body_schema(WebhookRequest))
    async def webhook(request: Request) -> dict[str, Any]:
        """Take note of an event of Label Studio's; answers at once, from memory.

        What is new is counted in Label Studio afterwards. `job` is the training under way, if the event asks for one.
        """
        proven = access.proves(request)
        event = await body_of(request, WebhookRequest)
        answer = learning.hear(event, proven=proven)
        logger.info("project %s: event %s, %s", event.project_key, event.action[:60], answer["heard"])
        return answer

    @app.get("/versions")
    async def versions() -> dict[str, list[str]]:
        """The versions that this server answers with, the latest first."""
        return {"versions": service.versions}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Counters and latencies in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/api/dm/actions")
    @app.post("/api/dm/actions/", include_in_schema=False)
    async def delete_predictions(request: Request) -> Response:
        """Pass `?id=delete_tasks_predictions&project=N`, and no other action, to Label Studio, with your own
        authorization. What is deleted is first written to a file.
        """
        data = await read_body(request, max_request_bytes)
        return await _run(
            service.batch_pool,
            forwarder.forward,
            dict(request.query_params),
            request.headers.get("authorization"),
            data,
        )

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page that says what is served, and in what state."""
        return await asyncio.to_thread(render_page, service, jobs, learning)

    @app.get("/status", response_class=HTMLResponse, include_in_schema=False)
    async def status() -> str:
        return await asyncio.to_thread(render_status, service, jobs, learning)

    _add_jobs(app, service, jobs, body_of)
    add_learning(app, service, learning, body_of, _body_schema(TrainingRequest))
    _add_state(app, service, jobs, learning)
    return app


def _add_jobs(
    app: FastAPI, service: Service, jobs: Jobs, body_of: Callable[[Request, type[PrelabelRequest]], Any]
) -> None:
    """The routes of the bulk jobs."""

    @app.post("/jobs/prelabel", status_code=202, openapi_extra=_body_schema(PrelabelRequest))
    async def prelabel(request: Request) -> dict[str, Any]:
        """Predict the tasks of a project that have no prediction of the served version, and store the predictions.

        Answers with the job, also where one works on the project already; `started_now` tells which. With `dry_run`
        only `total` is told. Label Studio's token comes in `X-Api-Key` or `Authorization: Token …`, unless the server
        has one of its own.
        """
        token = label_studio_token(request)
        body = await body_of(request, PrelabelRequest)
        if body.dry_run:
            work = await _run(service.batch_pool, jobs.look, body, token)
            return {
                "project": body.project,
                "title": work.project.title,
                "version": work.prediction.version,
                "total": work.total,
                "annotated": work.annotated,
            }
        job, started_now = await _run(service.batch_pool, jobs.start, body, token)
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
    async def show_failures(job: str, after: int = 0) -> dict[str, Any]:
        """The failed tasks of a job behind the first `after`, at most 1000, each as one line of JSON."""
        lines, complete = await asyncio.to_thread(failures_after, jobs.get(job), max(0, after))
        return {"lines": lines, "complete": complete}

    @app.post("/jobs/{job}/stop", status_code=202)
    async def stop_job(job: str) -> dict[str, Any]:
        """Let a job store what is in hand and end; what is left is done when it is started again."""
        found = jobs.get(job)
        found.stop()
        return found.as_json()


def _add_state(app: FastAPI, service: Service, jobs: Jobs, learning: Learning) -> None:
    """The state as a whole, and its changes."""
    latest = Latest(lambda: render_status(service, jobs, learning))

    @app.get("/state")
    async def state() -> dict[str, Any]:
        """Health, jobs, trainings and the last failed tasks."""
        return await asyncio.to_thread(_state, service, jobs, learning)

    @app.get("/events")
    async def events() -> Response:
        """The page's changing part, sent when it changes (server-sent events)."""
        return StreamingResponse(
            stream(latest, is_stopping=lambda: bool(app.state.is_stopping())),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def _state(service: Service, jobs: Jobs, learning: Learning) -> dict[str, Any]:
    return {
        **service.health(),
        "learning": learning_state(service, learning),
        "label_studio": jobs.label_studio_url,
        "jobs": [job.as_json() for job in jobs.all],
        "failures": [
            {
                "when": failure.when.isoformat(timespec="seconds"),
                "project": failure.project.number if failure.project is not None else None,
                "task": failure.task,
                "code": failure.error.code,
                "reason": failure.error.summary,
            }
            for failure in service.failures
        ],
    }


async def _run(pool: Executor, call: Callable[..., _T], *args: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, call, *args)


def _answer(outcomes: list[Outcome]) -> Response:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        return error_response(errors[0])
    results = [outcome.prediction if outcome.error is None else outcome.error.as_json() for outcome in outcomes]
    return JSONResponse({"results": results})


def _parse(data: bytes, model: type[_Body], path: str) -> _Body:
    try:
        return model.model_validate(_json_object(data, path))
    except ValidationError as error:
        raise bad_request(error) from None


def _json_object(data: bytes, path: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
        if b"\\ud" in data.lower():  # half a surrogate pair could be put into no answer
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "the request's body is not JSON", where=path, expected="a JSON object in UTF-8", got=str(error)[:200]
        ) from None
    if not isinstance(value, dict):
        raise RequestError(
            "the request's body is not a JSON object", where=path, expected="a JSON object", got=type(value).__name__
        )
    return value


def _body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that is parsed by hand, complete in itself."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(each) for each in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if reference is not None:
            return inlined(definitions[reference.rsplit("/", 1)[1]])
        return {key: inlined(value) for key, value in node.items()}

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(SpicaError)
    async def known(_: Request, error: SpicaError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        refused = RequestError(
            "a part of the address can't be read",
            where=f"{request.method} {request.url.path}",
            expected=f"{first['loc'][-1]}: {first['msg']}",
            got=str(first.get("input"))[:100],
            hint="see /docs for the routes",
        )
        return error_response(refused)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = _HTTP_ERRORS.get(error.status_code, RequestError)
        refused = kind(str(error.detail), where=f"{request.method} {request.url.path}", hint="see /docs for the routes")
        return JSONResponse(refused.as_json(), status_code=error.status_code, headers=error.headers)
