"""One HTTP connection to Label Studio: retries, and refusals turned into errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from spica.errors import AuthenticationError, LabelStudioError, LabelStudioRefusedError, LabelStudioUnreachableError
from spica.http import CERTIFICATE_HINT, certificate_trouble, host_of, http_client
from spica.labelstudio.tokens import LabelStudioAuth, webhook_secret
from spica.retry import repeat_briefly, retry_after_s

_MAX_TOLD = 600
_TAG = re.compile(r"<[^>]{0,300}>")


class Transport:
    """Speaks HTTP with one Label Studio. Thread-safe, closed by :meth:`close` or a ``with`` block.

    Args:
        url: of Label Studio, with or without a sub-path and a trailing slash.
        token: legacy or personal access token; None sends none.
        auth: used instead of the token's own, for other ways of logging in.
        timeout_s: seconds to wait for each step of a request, more than 0.
        transport: replaces the network, for tests.

    Raises:
        LabelStudioError: the URL is not an http(s) URL.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        auth: httpx.Auth | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(url)
        self._secrets = tuple(secret for secret in (token,) if secret)
        self.webhook_secret = webhook_secret(token) if token else None
        if auth is None and token is not None:
            auth = LabelStudioAuth(self.url, token)
        self._http = http_client(
            self.url,
            base_url=self.url,
            auth=auth,
            timeout=timeout_s,
            transport=transport,
            headers={"User-Agent": "spica", "Accept": "application/json"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; closing twice is fine."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        files: Any = None,
        repeatable: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """One request and its parsed answer; None when the answer has no body.

        Args:
            method: of HTTP.
            path: below Label Studio's URL, such as ``/api/projects/``.
            params: of the query.
            json: body, encoded as JSON.
            files: body, encoded as multipart.
            repeatable: whether sending it twice does no harm; by default only GET is repeated.
            timeout_s: instead of the connection's own.

        Raises:
            AuthenticationError: Label Studio answered 401.
            LabelStudioUnreachableError: no answer, after a few tries where that is safe.
            LabelStudioError: any other refusal, or an answer that is not JSON.
        """
        may_repeat = method == "GET" if repeatable is None else repeatable
        options: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s}
        where = f"{method} {self.url}{path}"

        def send() -> httpx.Response:
            return self._http.request(method, path, params=params, json=json, files=files, **options)

        try:
            response = repeat_briefly(send) if may_repeat else send()
        except httpx.TransportError as error:
            raise self._unreachable(where, error) from error
        return self._parsed(response, where)

    def _parsed(self, response: httpx.Response, where: str) -> Any:
        if not response.is_success:
            raise self._refusal(response, where)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioError(
                "the answer is not Label Studio's",
                where=where,
                expected="JSON",
                got=self._clean(response.headers.get("content-type", "no content type")),
                hint="check the address: it must be Label Studio's own, with its sub-path if it has one",
            ) from error

    def _unreachable(self, where: str, error: httpx.TransportError) -> LabelStudioUnreachableError:
        if isinstance(error, httpx.TimeoutException):
            return LabelStudioUnreachableError(
                "Label Studio did not answer in time",
                where=where,
                got=type(error).__name__,
                hint="it may be busy; try again, and look into its log if that does not help",
            )
        if (told := certificate_trouble(error)) is not None:
            return LabelStudioUnreachableError(
                "the certificate of Label Studio is not trusted", where=where, got=told, hint=CERTIFICATE_HINT
            )
        return LabelStudioUnreachableError(
            "Label Studio can't be reached",
            where=where,
            got=self._clean(str(error)) or type(error).__name__,
            hint="start Label Studio, or give its address with --url or LABEL_STUDIO_URL",
        )

    def _refusal(self, response: httpx.Response, where: str) -> LabelStudioError | AuthenticationError:
        told = self._clean(told_by(response))
        if response.status_code == 401:
            return _unauthenticated(where, told)
        if response.is_redirect:
            return LabelStudioError(
                "Label Studio sends to another address",
                where=where,
                got=self._clean(f"{response.status_code} to {response.headers.get('location', 'nowhere')}"),
                hint="give that address (up to the part before /api) with --url or LABEL_STUDIO_URL",
            )
        return LabelStudioRefusedError(
            "Label Studio refused a request",
            response.status_code,
            where=where,
            got=told,
            retry_after_s=retry_after_s(response),
        )

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if len(text) <= _MAX_TOLD else text[:_MAX_TOLD] + " …"


def told_by(response: httpx.Response) -> str:
    """Label Studio's own words about a failed request, on one line, without mark-up."""
    try:
        body = response.json()
    except ValueError:
        kind = response.headers.get("content-type", "")
        return f"{response.status_code}, " + ("an HTML page" if "html" in kind else response.text.strip()[:200])
    words = [str(response.status_code)]
    if isinstance(body, dict):
        if body.get("detail"):
            words.append(str(body["detail"]))
        if body.get("validation_errors"):
            words.append(_flat(body["validation_errors"]))
        if len(words) == 1:
            words.append(_flat(body))
    else:
        words.append(_flat(body))
    return _TAG.sub("", ", ".join(words)).replace("\n", " ")


def _checked_url(url: str) -> str:
    parsed = httpx.URL(url.strip() if host_of(url) else "")
    if parsed.scheme not in {"http", "https"}:
        raise LabelStudioError(
            "not an address of Label Studio",
            expected="http://host:port or https://host/path",
            got=parsed.scheme or "no scheme",
            hint="give it with --url or LABEL_STUDIO_URL",
        )
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/")


def _unauthenticated(where: str, told: str) -> AuthenticationError:
    """For connections that are not made with a token; LabelStudioAuth itself explains a token that is refused."""
    return AuthenticationError(
        "Label Studio wants to know who asks",
        where=where,
        got=told,
        hint="copy the access token from Label Studio's Account & Settings page and give it with --token or "
        "LABEL_STUDIO_API_KEY",
    )


def _flat(errors: Any) -> str:
    if isinstance(errors, dict):
        return "; ".join(f"{key}: {_flat(value)}" for key, value in errors.items())
    if isinstance(errors, list):
        return ", ".join(_flat(item) for item in errors[:5])
    return str(errors)
