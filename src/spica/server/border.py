"""How failures leave the server: one JSON shape, and never a traceback."""

from __future__ import annotations

import logging

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spica.errors import QueueFullError, SpicaError

logger = logging.getLogger(__name__)


def error_response(error: SpicaError, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the one shape, with the status of its kind, and Retry-After where it can be known."""
    if isinstance(error, QueueFullError):
        headers = {**(headers or {}), "Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.as_json(), status_code=error.status, headers=headers)


class LastResortMiddleware:
    """An unforeseen failure becomes a sentence for the client and a traceback in the log.

    Starlette's own last resort raises the failure again behind its answer, at which uvicorn hangs up; a client that
    keeps its connection would lose its next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if begun:  # too late for an answer: hanging up tells the client that what it has is not whole
                raise
            hint = "see the server's log and report it"
            error = SpicaError("the server failed on this request", where=scope["path"], hint=hint)
            await error_response(error)(scope, receive, send)
