"""What a request may not do: be too large, or come without the password."""

from __future__ import annotations

import base64
import binascii
import secrets
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from spica.errors import AuthenticationError, RequestError, RequestTooLargeError
from spica.server.border import error_response

OPEN_PATHS = ("/webhook", "/api/dm/actions")
"""Routes without the password: Label Studio sends none with its events, and the forwarded action carries Label Studio's
own authorization."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, at most ``limit`` bytes of it in memory.

    Raises:
        RequestTooLargeError: longer than ``limit`` bytes; the rest is not read.
        RequestError: the length that the client announced is no number.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal():
        raise RequestError("the header Content-Length is no number", where=request.url.path, got=announced[:40])
    chunks: list[bytes] = []
    size = int(announced)
    _refuse_over(size, limit, request)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        _refuse_over(size, limit, request)
        chunks.append(chunk)
    return b"".join(chunks)


def _refuse_over(size: int, limit: int, request: Request) -> None:
    if size > limit:
        raise RequestTooLargeError(
            "the request is too large",
            where=request.url.path,
            expected=f"at most {limit} bytes",
            got=f"{size} bytes or more",
            hint="select fewer tasks at once, or raise SPICA_MAX_REQUEST_BYTES",
        )


def refuse_foreign(request: Request) -> None:
    """Raise unless a request that sets something going comes from a program or from our own page.

    A form on another site can't send JSON, and a script there says where it comes from.

    Raises:
        RequestError: another content type than JSON, or another site's page.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            "the request is not JSON",
            where=request.url.path,
            expected="Content-Type: application/json",
            got=kind[:60] or "no content type",
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise RequestError(
            "the request comes from another site's page",
            where=request.url.path,
            got=origin[:100],
            hint="use the page of this server, or a program",
        )


def label_studio_token(request: Request) -> SecretStr | None:
    """Label Studio's token of whoever asks: ``X-Api-Key``, as Label Studio itself takes it, or ``Authorization``.

    With ``--basic-auth``, ``Authorization`` is the model server's own.
    """
    key = request.headers.get("x-api-key", "").strip()
    if key:
        return SecretStr(key)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return SecretStr(token.strip()) if scheme.lower() in ("token", "bearer") and token.strip() else None


class BasicAuthMiddleware:
    """Ask for user and password on every route but :data:`OPEN_PATHS`.

    Args:
        app: the application behind.
        expected: ``user:password``.
    """

    def __init__(self, app: ASGIApp, *, expected: str) -> None:
        self._app = app
        self._expected = expected.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or ask for the password."""
        if scope["type"] != "http" or scope["path"].rstrip("/") in OPEN_PATHS or self._admits(scope):
            await self._app(scope, receive, send)
            return
        error = AuthenticationError(
            "user and password are missing or wrong",
            where=scope["path"],
            expected="Basic authentication as set by --basic-auth",
            hint="in Label Studio, choose Basic Auth in the model's form and enter both",
        )
        response = error_response(error, headers={"WWW-Authenticate": 'Basic realm="Spica", charset="UTF-8"'})
        await response(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, encoded = given.partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            decoded = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        return secrets.compare_digest(decoded, self._expected)
