"""A running model server, as the commands speak to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from spica.errors import AuthenticationError, LaunchError, ModelUnavailableError, SpicaError, UsageError
from spica.http import CERTIFICATE_HINT, certificate_trouble, http_client, user_and_password

_GONE_S = 15.0
"""A server that is busy for so long is taken to be gone."""


class RemoteError(SpicaError):
    """What a model server answered instead of doing what it was asked."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(
            str(body.get("message")),
            where=body.get("where"),
            expected=body.get("expected"),
            got=body.get("got"),
            hint=body.get("hint"),
        )
        self.remote_code = str(body.get("code"))


class RemoteServer:
    """A model server at an address; used in a ``with`` block.

    Args:
        url: of the server.
        basic_auth: ``user:password`` that it asks for, or None.
    """

    def __init__(self, url: str, basic_auth: str | None) -> None:
        self.url = url.rstrip("/")
        self._http = http_client(self.url, auth=user_and_password(basic_auth), timeout=150)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def state(self) -> dict[str, Any]:
        """Health, jobs, last failures.

        Raises:
            LaunchError: nothing answers there, or something else.
        """
        try:
            answer = self._http.get(f"{self.url}/state", timeout=10)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LaunchError(
                "no model server answers",
                where=self.url,
                got=certificate_trouble(error) or type(error).__name__,
                hint=CERTIFICATE_HINT
                if certificate_trouble(error)
                else "start one with `spica serve --weights FILE` or `spica up`, or give its address with --model-url",
            ) from None
        body = self._body(answer)
        if body.get("model_class") != "Spica":
            raise LaunchError(
                "what answers there is not Spica's model server",
                where=self.url,
                got=f"HTTP {answer.status_code}",
                hint="give the model server's address with --model-url",
            )
        return body

    def post(self, path: str, body: dict[str, Any], token: SecretStr | None = None) -> dict[str, Any]:
        """Ask for something.

        Raises:
            SpicaError: the server's own, or it does not answer.
        """
        headers = {} if token is None else {"X-Api-Key": token.get_secret_value()}
        return self._ask(lambda: self._http.post(self.url + path, json=body, headers=headers), patience_s=0)

    def get(self, path: str) -> dict[str, Any]:
        """Look at something; a server that is busy is asked again for a while.

        Raises:
            SpicaError: the server's own, or it does not answer.
        """
        return self._ask(lambda: self._http.get(self.url + path, timeout=10), patience_s=_GONE_S)

    def _ask(self, send: Callable[[], httpx.Response], *, patience_s: float) -> dict[str, Any]:
        until = time.monotonic() + patience_s
        while True:
            try:
                return self._body(send())
            except httpx.HTTPError as error:
                if time.monotonic() >= until:
                    raise LaunchError(
                        "the model server does not answer any more",
                        where=self.url,
                        got=type(error).__name__,
                        hint="what is stored stays; start it again, and this command goes on where it stopped",
                    ) from None
            time.sleep(0.5)

    def _body(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.is_success and isinstance(body, dict):
            return body
        error = body.get("error") if isinstance(body, dict) else None
        if answer.status_code == httpx.codes.UNAUTHORIZED and "www-authenticate" in answer.headers:
            hint = "give them with --basic-auth user:password"
            raise AuthenticationError("the model server asks for user and password", where=self.url, hint=hint)
        if isinstance(error, dict) and "code" in error:
            raise error_of(error)
        raise LaunchError(
            "what answers there is not Spica's model server",
            where=self.url,
            got=f"HTTP {answer.status_code}",
            hint="give the model server's address with --model-url",
        )


def error_of(body: dict[str, Any]) -> SpicaError:
    """The error that a server has told in JSON, with the exit status of its kind."""
    known = {kind.code: kind for kind in (UsageError, AuthenticationError, ModelUnavailableError)}
    kind = known.get(str(body.get("code")))
    if kind is None:
        return RemoteError(body)
    facts = {name: body.get(name) for name in ("where", "expected", "got", "hint")}
    return kind(str(body.get("message")), **facts)
