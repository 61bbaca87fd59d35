"""Label Studio's two kinds of token, each sent as it wants to be.

A *legacy* token goes into ``Authorization: Token …`` and works only where the organization allows it, which is off by
default. A *personal* access token is a JWT of the kind ``refresh``: it buys an access token that lives five minutes and
goes into ``Authorization: Bearer …``. Sent in any other way, a good token is refused.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final, Literal

import httpx

from spica.errors import AuthenticationError, LabelStudioError, UsageError
from spica.http import host_of, origin_of

TokenKind = Literal["legacy", "personal", "access"]

WEBHOOK_HEADER: Final = "X-Spica-Secret"
"""In which the events that Label Studio sends carry :func:`webhook_secret`."""

_EARLY_S: Final = 30.0  # an access token is renewed so long before its end
_MAKE_PERSONAL: Final = "Create a personal access token in Label Studio (Account & Settings > Personal Access Token)"
_REFUSED: Final = {
    "legacy": f"Copy the token again (Account & Settings > Legacy Token). {_MAKE_PERSONAL} if there is none.",
    "personal": "Check that personal access tokens are on (Organization > API Tokens Settings), and that the token's "
    "user still exists.",
    "access": f"An access token lives five minutes. {_MAKE_PERSONAL}: it renews itself.",
}


def checked_url(url: str) -> str:
    """Label Studio's address without query, fragment and slash at the end.

    Raises:
        UsageError: it is not an http(s) address.
    """
    parsed = httpx.URL(url.strip() if host_of(url) else "")
    if parsed.scheme not in ("http", "https"):
        raise UsageError(
            "Label Studio's address is not a web address",
            where="LABEL_STUDIO_URL",
            expected="http://127.0.0.1:8080, or https and a host",
            got=repr(url.partition("?")[0]),
            hint="copy it from the browser, up to and without /projects; --url gives it too",
        )
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/")


def webhook_secret(token: str) -> str:
    """What a webhook of Label Studio's carries, so that the model server knows its events from forged ones.

    Derived from the access token, which it does not disclose: so it is kept nowhere, all servers with this token share
    it, and whoever connects a model with this token knows it.
    """
    return hmac.digest(token.encode(), b"spica webhook", "sha256").hex()


def redacted(text: str, *secrets: str) -> str:
    """``text`` with ``***`` for secrets; a short one, which ordinary words may contain, only where it stands alone."""
    for secret in secrets:
        pattern = re.escape(secret) if len(secret) >= 8 else rf"(?<![\w']){re.escape(secret)}(?!\w)"
        text = re.sub(pattern, "***", text)
    return text


def token_kind(token: str) -> TokenKind:
    """Which kind this is, by its payload and not by its length; what is no JWT is ``"legacy"``."""
    kind = _jwt_payload(token).get("token_type")
    return "personal" if kind == "refresh" else "access" if kind == "access" else "legacy"


class LabelStudioAuth(httpx.Auth):
    """Puts Label Studio's token on requests to Label Studio, and on no others. Thread-safe; for synchronous clients.

    An access token is bought at the first request, again shortly before its end, and once more when Label Studio
    answers 401.

    Args:
        url: address of Label Studio, with its sub-path if it has one. Only requests to this scheme, host and port get
            the token.
        token: legacy, personal or access token.
        clock: seconds that only go forward.

    Raises:
        UsageError: from the constructor, if ``url`` is not a web address.
        AuthenticationError: from the constructor, if ``token`` can't be a token; from a request, if Label Studio
            refuses it.
        LabelStudioError: from a request, if Label Studio can't renew tokens.
    """

    def __init__(self, url: str, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = checked_url(url)
        self._origin = origin_of(self._url)
        self._token = _checked_token(token)
        self._clock = clock
        self._lock = threading.Lock()
        self._access: tuple[str, float] | None = None  # the access token and its end by the clock
        self.kind: Final[TokenKind] = token_kind(self._token)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={self._url!r}, kind={self.kind!r})"

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The requests that one request of the caller's takes."""
        if origin_of(request.url) != self._origin:
            yield request
            return
        refused: str | None = None
        for _attempt in range(2 if self.kind == "personal" else 1):
            token = self._token
            if self.kind == "personal":
                with self._lock:  # one renewal serves all that wait
                    if self._access is None or self._access[0] == refused or self._clock() >= self._access[1]:
                        renewal = yield httpx.Request(
                            "POST", f"{self._url}/api/token/refresh/", json={"refresh": self._token}
                        )
                        renewal.read()
                        self._access = self._bought(renewal)
                    token = self._access[0]
            request.headers["Authorization"] = f"{'Token' if self.kind == 'legacy' else 'Bearer'} {token}"
            response = yield request
            if response.status_code != httpx.codes.UNAUTHORIZED:
                return
            refused = token
        response.read()
        raise self._refused(response)

    def _bought(self, renewal: httpx.Response) -> tuple[str, float]:
        """The access token in Label Studio's answer, and its end by the clock."""
        status, where = renewal.status_code, str(renewal.request.url)
        if renewal.is_redirect:
            raise LabelStudioError(
                "Label Studio's address leads elsewhere; the token was not sent there",
                where=where,
                expected="an answer",
                got="a redirect",
                hint="Set LABEL_STUDIO_URL to the address that the browser shows, with https where it does.",
            )
        if status in (400, 401, 403):
            raise AuthenticationError(
                "Label Studio refused the personal access token",
                where=where,
                expected="a token that is neither expired nor revoked",
                got=f"{status} {self._detail(renewal)}".rstrip(),
                hint=f"{_MAKE_PERSONAL} and set LABEL_STUDIO_API_KEY to it.",
            )
        try:
            access = renewal.json()["access"] if status == httpx.codes.OK else None
        except (ValueError, KeyError, TypeError):
            access = None
        if not isinstance(access, str):
            raise LabelStudioError(
                "Label Studio gave no access token for the personal one",
                where=where,
                expected='200 with {"access": …}',
                got=f"{status}, {renewal.headers.get('content-type', 'no content type')}",
                hint="Check that LABEL_STUDIO_URL is Label Studio's address, its sub-path included.",
            )
        payload = _jwt_payload(access)
        try:  # by its length, not by its end: the two machines' clocks may differ
            life_s = float(payload["exp"]) - float(payload["iat"])
        except (KeyError, TypeError, ValueError):
            life_s = float("inf")
        return access, self._clock() + life_s - min(_EARLY_S, life_s / 2)

    def _refused(self, response: httpx.Response) -> AuthenticationError:
        detail = self._detail(response)
        got = f"401 {detail}".rstrip()
        where = str(response.request.url.copy_with(query=None, fragment=None, userinfo=b""))
        if self.kind == "legacy" and "legacy token authentication has been disabled" in detail:
            return AuthenticationError(
                "legacy tokens are switched off in Label Studio",
                where=where,
                expected="a personal access token, or legacy tokens switched on",
                got=got,
                hint=f"{_MAKE_PERSONAL}, or switch legacy tokens on (Organization > API Tokens Settings > Legacy "
                "Tokens); for a new Label Studio, start it with LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true.",
            )
        return AuthenticationError(
            f"Label Studio refused the {self.kind} token", where=where, got=got, hint=_REFUSED[self.kind]
        )

    def _detail(self, response: httpx.Response) -> str:
        """Label Studio's own words, without anything secret in them."""
        try:
            body = response.json()
        except ValueError:
            return ""
        detail = str(body.get("detail", "")) if isinstance(body, dict) else ""
        return redacted(detail, self._token, *(self._access or ())[:1])[:200]


def _checked_token(token: str) -> str:
    """The token without surrounding space; never shown, also not when it is wrong."""
    stripped = token.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise AuthenticationError(
            "this can't be a token of Label Studio's",
            where="LABEL_STUDIO_API_KEY",
            expected="the token alone, one word",
            got="nothing" if not stripped else "spaces or characters that no token has",
            hint="Copy the token again, without quotes and without the word Token or Bearer.",
        )
    return stripped


def _jwt_payload(token: str) -> dict[str, Any]:
    """The claims of a JWT (RFC 7519), unverified; empty if ``token`` is none."""
    parts = token.strip().split(".")
    if len(parts) != 3:
        return {}
    try:
        _header, payload = (
            json.loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
            for part in parts[:2]
        )
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}
