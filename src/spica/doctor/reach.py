"""Who answers at an address: a web server, nobody, or something that speaks no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from spica.http import certificate_trouble, http_client

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        kind: ``http``; ``closed`` when nobody takes connections there; ``foreign`` when somebody does and sends no
            HTTP; ``untrusted`` when its certificate is refused; ``invalid`` for no web address at all.
        status: of HTTP, 0 without.
        body: the parsed JSON, None without.
        told: for people, what happened.
    """

    kind: Literal["http", "closed", "foreign", "untrusted", "invalid"]
    status: int = 0
    body: Any = None
    told: str = ""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The JSON object in the body, empty if there is none."""
        return self.body if isinstance(self.body, dict) else {}


def ask(
    url: str,
    *,
    json: Any = None,
    auth: httpx.Auth | tuple[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """Ask for an address, with POST if there is a body to send; never raises for what may come back."""
    method = "GET" if json is None else "POST"
    try:
        with http_client(url, timeout=timeout_s) as http:
            response = http.request(method, url, json=json, auth=auth)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if (told := certificate_trouble(error)) is not None:
            return Answer("untrusted", told=told)
        return Answer("closed", told=str(error) or type(error).__name__)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        return Answer("invalid", told=str(error))
    except httpx.RequestError as error:
        return Answer("foreign", told=str(error) or type(error).__name__)
    try:
        body = response.json()
    except ValueError:
        body = None
    kind = response.headers.get("content-type", "no content type").partition(";")[0]
    return Answer("http", response.status_code, body, f"HTTP {response.status_code}, {kind}")
