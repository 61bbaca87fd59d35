"""One HTTP connection to Label Studio: retries, and refusals turned into errors that say what to do."""

from __future__ import annotations

import ipaddress
import re
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from spica.errors import AuthenticationError, LabelStudioError, LabelStudioUnreachableError, UsageError
from spica.labelstudio.tokens import LabelStudioAuth, webhook_secret

_RETRY_WAITS_S = (0.2, 0.6, 1.5)
_LOCKED = "database-is-locked-error"
"""Anchor in Label Studio's text for a busy SQLite (core/utils/exceptions.py)."""
_GATEWAY_STATUSES = frozenset({502, 503, 504})
_MAX_TOLD = 600
_TAG = re.compile(r"<[^>]{0,300}>")
CERTIFICATE_HINT = (
    "if you trust it, set SSL_CERT_FILE to a PEM file with that certificate or its authority's, and use the name that "
    "it is made out to in the address"
)


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
        waits = _RETRY_WAITS_S if may_repeat else ()
        for wait_s in (*waits, None):
            try:
                response = self._http.request(method, path, params=params, json=json, files=files, **options)
            except httpx.TransportError as error:
                passing = not isinstance(error, httpx.TimeoutException) and certificate_trouble(error) is None
                if wait_s is not None and passing:
                    time.sleep(wait_s)
                    continue
                raise self._unreachable(where, error) from error
            if wait_s is None or not _is_passing_trouble(response):
                break
            time.sleep(wait_s)
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
        return LabelStudioRefusedError("Label Studio refused a request", response.status_code, where=where, got=told)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if len(text) <= _MAX_TOLD else text[:_MAX_TOLD] + " …"


class LabelStudioRefusedError(LabelStudioError):
    """A request that Label Studio answered with an error status.

    Attributes:
        http_status: the status that it answered.
    """

    def __init__(
        self,
        what: str,
        http_status: int,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, where=where, expected=expected, got=got, hint=hint or _hint_for(http_status))
        self.http_status = http_status


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


def http_client(url: str, **options: Any) -> httpx.Client:
    """A connection by HTTP to an address: no proxy for this machine's own, and certificates as SSL_CERT_FILE says.

    Args:
        url: that is going to be asked.
        options: of ``httpx.Client``.

    Raises:
        UsageError: the address, a proxy's, or what SSL_CERT_FILE names can't be read.
    """
    if not _host_of(url):
        raise UsageError(
            "this is no address", where=url[:200], expected="http://HOST:PORT", hint="look for a typing error"
        )
    # By a mount and not by trust_env, which would pass over SSL_CERT_FILE too.
    mounts = {f"all://{httpx.URL(url).netloc.decode()}": None} if is_loopback(url) else None
    try:
        return httpx.Client(mounts=mounts, **options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise UsageError(
            "the proxy that the environment names can't be used",
            where="ALL_PROXY, HTTP_PROXY, HTTPS_PROXY",
            expected="http://HOST:PORT",
            got=str(error).splitlines()[0],
            hint="mend or remove the variable; SOCKS needs: pip install httpx[socks]",
        ) from None
    except OSError as error:
        raise UsageError(
            "the trusted certificates can't be read",
            where="SSL_CERT_FILE",
            expected="a PEM file",
            got=str(error),
            hint="mend the environment variable, or remove it",
        ) from None


def certificate_trouble(error: BaseException) -> str | None:
    """What is wrong with the other side's certificate, if that ended a connection."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else cause.verify_message


def is_loopback(url: str) -> bool:
    """Whether an address names this machine itself."""
    host = _host_of(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(url: str) -> str:
    """The name or address of the host; empty where there is none that could be looked up."""
    try:
        host = httpx.URL(url.strip()).host
        host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        return ""
    return host


def _checked_url(url: str) -> str:
    parsed = httpx.URL(url.strip() if _host_of(url) else "")
    if parsed.scheme not in {"http", "https"}:
        raise LabelStudioError(
            "not an address of Label Studio",
            expected="http://host:port or https://host/path",
            got=parsed.scheme or "no scheme",
            hint="give it with --url or LABEL_STUDIO_URL",
        )
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/")


def _is_passing_trouble(response: httpx.Response) -> bool:
    if response.status_code in _GATEWAY_STATUSES:
        return True
    return response.status_code == 500 and _LOCKED in response.text


def _unauthenticated(where: str, told: str) -> AuthenticationError:
    """For connections that are not made with a token; LabelStudioAuth itself explains a token that is refused."""
    return AuthenticationError(
        "Label Studio wants to know who asks",
        where=where,
        got=told,
        hint="copy the access token from Label Studio's Account & Settings page and give it with --token or "
        "LABEL_STUDIO_API_KEY",
    )


def _hint_for(status: int) -> str:
    if status == 403:
        return "the account of this token may not do that: use one that may"
    if status == 404:
        return "check the number of the project and the address of Label Studio"
    if status >= 500:
        return "look into Label Studio's log; if its database was busy, try again"
    return "mend what Label Studio names and try again"


def _flat(errors: Any) -> str:
    if isinstance(errors, dict):
        return "; ".join(f"{key}: {_flat(value)}" for key, value in errors.items())
    if isinstance(errors, list):
        return ", ".join(_flat(item) for item in errors[:5])
    return str(errors)
