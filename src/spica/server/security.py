"""Whom the server answers: hosts, origins, passwords, the webhook's secret, and how large a request may be.

Starlette's TrustedHostMiddleware knows no "any IP address", and FastAPI's HTTPBasic only ASCII passwords; both answer
outside the one shape of errors.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spica.errors import AuthenticationError, RequestError, RequestTooLargeError, SpicaError, UsageError
from spica.http import is_local
from spica.labelstudio.auth import WEBHOOK_HEADER, webhook_secret
from spica.server.middleware import error_response
from spica.settings import Settings

WEBHOOK = "/webhook"
FORWARDED = "/api/dm/actions"
"""Takes Label Studio's own token in ``Authorization``, where a page of another site can't write: it needs neither our
password nor a content type."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]@:/?#\s]+)(?::[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Access:
    """Whom a server answers.

    A page of another site reaches a server on its visitor's machine, also by letting its own name lead there ("DNS
    rebinding"). So a server that listens on loopback answers under loopback's names alone; one that others may reach
    answers under any address, which no site can claim, and its machine's own names; both under ``hosts``.

    """

    local: bool = True  # whether it listens on loopback
    hosts: frozenset[str] = frozenset()  # further names under which it is asked, lower case
    password: str | None = None  # "user:password" to ask for
    secret: str | None = None  # in the webhooks that Spica registers; None without a token of Label Studio's

    @classmethod
    def of(cls, settings: Settings, host: str) -> Self:
        """As the settings say, for a server bound to ``host``.

        Raises:
            UsageError: a name or the password can't be read.
        """
        password = settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None
        if password is not None and (":" not in password or password.startswith(":")):
            raise UsageError("user and password can't be read", where="--basic-auth", expected="user:password")
        names = {host.strip("[]").lower()}
        for allowed in settings.allowed_hosts:
            name = _host_name(allowed.strip())
            if name is None:
                raise UsageError(
                    "a host name can't be read",
                    where="--allowed-host",
                    expected="a name, such as host.docker.internal",
                    got=allowed[:100],
                )
            names.add(name)
        local = is_local(host)
        if not local:
            short = socket.gethostname().lower().partition(".")[0]
            names |= {short, f"{short}.local", socket.getfqdn().lower()}
        token = settings.label_studio_api_key
        secret = webhook_secret(token.get_secret_value()) if token is not None else None
        return cls(local, frozenset(names), password, secret)

    def check(self, request: Request) -> None:
        """Raise unless a request may go on to its route.

        Raises:
            RequestError: asked under a foreign name, or something is to be done for another site's page.
            AuthenticationError: the password is missing or wrong.
        """
        self._check_host(request.headers.get("host", ""))
        path = request.url.path.rstrip("/")
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            _refuse_foreign(request, path)
        if self.password is None or path == FORWARDED or self._knows_password(request):
            return
        if path != WEBHOOK or not self.knows_secret(request):
            raise AuthenticationError(
                "user and password are missing or wrong",
                where=request.url.path,
                expected="Basic authentication as set by --basic-auth",
                hint="in Label Studio, choose Basic Auth in the model's form and enter both",
            )

    def proves(self, request: Request) -> bool:
        """Whether an event is Label Studio's for sure.

        Raises:
            AuthenticationError: it carries a wrong secret.
        """
        if WEBHOOK_HEADER in request.headers and not self.knows_secret(request):
            raise AuthenticationError(
                "the event carries a wrong secret",
                where=request.url.path,
                hint="`spica connect`, with the token that the model server has, gives Label Studio the right one",
            )
        return self.knows_secret(request) or self._knows_password(request)

    def knows_secret(self, request: Request) -> bool:
        """Whether a request carries the webhook's secret."""
        sent = request.headers.get(WEBHOOK_HEADER, "")
        return self.secret is not None and secrets.compare_digest(sent.encode(), self.secret.encode())

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if name is not None:
            if name in self.hosts or name == "localhost":
                return
            try:
                if ipaddress.ip_address(name).is_loopback or not self.local:
                    return
            except ValueError:  # a name, and none of ours
                pass
        raise RequestError(
            "the model server is not known by this name",
            where=f"Host: {host[:100]}",
            expected="127.0.0.1, localhost or [::1]" if self.local else "an IP address or this machine's name",
            hint=f"if people or Label Studio reach it so, start it with --allowed-host {name or 'NAME'}",
        )

    def _knows_password(self, request: Request) -> bool:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if self.password is None or scheme.lower() != "basic":
            return False
        try:
            sent = base64.b64decode(encoded, validate=True)
        except ValueError:
            return False
        return secrets.compare_digest(sent, self.password.encode())


class AccessMiddleware:
    """Answers what :meth:`Access.check` refuses, and bodies that are too large: no more than the limit is read."""

    def __init__(self, app: ASGIApp, *, access: Access, max_request_bytes: int) -> None:
        self._app = app
        self._access = access
        self._limit = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, size = Request(scope), 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            self._refuse_over(size, request)
            return message

        try:
            self._access.check(request)
            announced = request.headers.get("content-length", "0")
            if not announced.isdecimal():
                raise RequestError("the header Content-Length is no number", where=request.url.path, got=announced[:40])
            self._refuse_over(int(announced), request)
        except SpicaError as error:
            asking = {"WWW-Authenticate": 'Basic realm="Spica", charset="UTF-8"'}
            headers = asking if isinstance(error, AuthenticationError) else None
            await error_response(error, headers=headers)(scope, receive, send)
            return
        await self._app(scope, limited, send)

    def _refuse_over(self, size: int, request: Request) -> None:
        if size > self._limit:
            raise RequestTooLargeError(
                "the request is too large",
                where=request.url.path,
                expected=f"at most {self._limit} bytes",
                got=f"{size} bytes or more",
                hint="select fewer tasks at once, or raise SPICA_MAX_REQUEST_BYTES",
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


def _host_name(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None if there is none."""
    match = _HOST.fullmatch(host.lower())
    return match[1].strip("[]").rstrip(".") if match is not None else None


def _refuse_foreign(request: Request, path: str) -> None:
    """Raise unless a request that changes something comes from a program or from our own page.

    A form on another site can't send JSON, and a script there says where it comes from.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and path != FORWARDED:
        raise RequestError(
            "the request is not JSON",
            where=request.url.path,
            expected="Content-Type: application/json",
            got=kind[:60] or "no content type",
        )
    origin = request.headers.get("origin")
    try:
        foreign = origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:  # such as http://[
        foreign = True
    if foreign:
        raise RequestError(
            "the request comes from another site's page",
            where=request.url.path,
            got=str(origin)[:100],
            hint="use the page of this server, or a program",
        )
