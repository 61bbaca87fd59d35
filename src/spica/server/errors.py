"""How failures leave the server: one JSON shape for each of them, and never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spica.errors import MethodNotAllowedError, NotFoundError, QueueFullError, RequestError, SpicaError
from spica.labelstudio.protocol import bad_request

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
        in_body = details[0]["loc"][0] == "body"
        return error_response(
            _bad_body(request, details, await request.body()) if in_body else _bad_address(request, details[0])
        )

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


def _bad_address(request: Request, first: Mapping[str, Any]) -> RequestError:
    return RequestError(
        "a part of the address can't be read",
        where=_place(request),
        expected=f"{first['loc'][-1]}: {first['msg']}",
        got=str(first.get("input"))[:100],
        hint="see /docs for the routes",
    )


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
