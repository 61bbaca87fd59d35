"""Both kinds of token, against scripted answers of Label Studio 1.23.2."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from recording_server import Answer, Asked, RecordingServer
from spica.errors import AuthenticationError, LabelStudioError, UsageError
from spica.labelstudio.auth import LabelStudioAuth, redacted, token_kind
from spica.labelstudio.client import LabelStudioClient

HOME = "http://ls.example:8080"
LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: Any) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmF0dXJl"


PERSONAL = jwt(token_type="refresh", exp=8_000_000_000, iat=1_700_000_000, jti="a", user_id=1)
ACCESS = jwt(token_type="access", exp=1_700_000_300, iat=1_700_000_000, jti="b", user_id=1)


class FakeLabelStudio:
    """Renews tokens and answers all else with 200 to the newest access token, 401 to any other."""

    def __init__(self, life_s: int = 300, renewal: httpx.Response | None = None) -> None:
        self.asked: list[httpx.Request] = []
        self.renewals = 0
        self.valid = ""
        self._life_s = life_s
        self._renewal = renewal

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The answer to one request."""
        self.asked.append(request)
        if request.url.path.endswith("/api/token/refresh/"):
            self.renewals += 1
            if self._renewal is not None:
                return self._renewal
            assert json.loads(request.read()) == {"refresh": PERSONAL}
            self.valid = jwt(token_type="access", iat=1000, exp=1000 + self._life_s, jti=str(self.renewals))
            return httpx.Response(200, json={"access": self.valid})
        good = request.headers.get("authorization") == f"Bearer {self.valid}"
        return httpx.Response(200 if good else 401, json={} if good else {"detail": "Authentication failed"})


def client(answer: Callable[[httpx.Request], httpx.Response], auth: httpx.Auth) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(answer), auth=auth)


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (LEGACY, "legacy"),
        (PERSONAL, "personal"),
        (f" {PERSONAL}\n", "personal"),
        (ACCESS, "access"),
        (jwt(token_type="sliding"), "legacy"),
        (jwt(), "legacy"),
        ("a.b.c", "legacy"),
        ("..", "legacy"),
        ("", "legacy"),
        ("e30.W10.x", "legacy"),  # a payload that is a list
        (f"{PERSONAL}.more", "legacy"),
        ("日本.e30.x", "legacy"),
    ],
    ids=[
        "legacy",
        "pat",
        "pat-space",
        "access",
        "sliding",
        "no-type",
        "dots",
        "empty-parts",
        "empty",
        "list",
        "4",
        "ja",
    ],
)
def test_kinds_are_told_apart(token: str, kind: str) -> None:
    """A token's kind is in its payload, never guessed from its length."""
    assert token_kind(token) == kind


@pytest.mark.parametrize(("token", "header"), [(LEGACY, f"Token {LEGACY}"), (ACCESS, f"Bearer {ACCESS}")])
def test_legacy_and_access_tokens_are_sent_as_they_are(token: str, header: str) -> None:
    """A legacy token goes as Token, an access token as Bearer, without a renewal."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200)

    with client(answer, LabelStudioAuth(HOME, token)) as connection:
        connection.get(f"{HOME}/api/projects/")
    assert seen == [header]


def test_a_personal_token_buys_one_access_token_for_many_requests() -> None:
    """The personal token is sent once, to the renewal; requests carry the access token."""
    label_studio = FakeLabelStudio()
    with client(label_studio, LabelStudioAuth(HOME, PERSONAL)) as connection:
        assert [connection.get(f"{HOME}/x").status_code for _ in range(3)] == [200, 200, 200]
    assert label_studio.renewals == 1
    assert not any(PERSONAL in request.headers.get("authorization", "") for request in label_studio.asked)


def test_the_renewal_keeps_the_sub_path() -> None:
    """A Label Studio below a sub-path is asked there."""
    label_studio = FakeLabelStudio()
    with client(label_studio, LabelStudioAuth(f"{HOME}/ls/", PERSONAL)) as connection:
        connection.get(f"{HOME}/ls/api/projects/")
    assert label_studio.asked[0].url.path == "/ls/api/token/refresh/"


def test_an_access_token_is_renewed_shortly_before_its_end() -> None:
    """At 269 of 300 seconds the token is used, at 271 it is renewed, before Label Studio refuses it."""
    now = [0.0]
    label_studio = FakeLabelStudio()
    with client(label_studio, LabelStudioAuth(HOME, PERSONAL, clock=lambda: now[0])) as connection:
        connection.get(f"{HOME}/x")
        now[0] = 269.0
        connection.get(f"{HOME}/x")
        assert label_studio.renewals == 1
        now[0] = 271.0
        connection.get(f"{HOME}/x")
    assert label_studio.renewals == 2
    assert len(label_studio.asked) == 5  # no request was sent twice


def test_a_refused_access_token_is_renewed_once() -> None:
    """A 401 in the middle of a token's life is answered by one renewal and one repetition."""
    label_studio = FakeLabelStudio()
    with client(label_studio, LabelStudioAuth(HOME, PERSONAL)) as connection:
        connection.get(f"{HOME}/x")
        label_studio.valid = "revoked"
        assert connection.get(f"{HOME}/x").status_code == 200
    assert label_studio.renewals == 2


def test_a_second_refusal_is_an_error() -> None:
    """A fresh access token that is refused as well ends in an error that names the switch, not in a loop."""
    label_studio = FakeLabelStudio()

    def answer(request: httpx.Request) -> httpx.Response:
        response = label_studio(request)
        label_studio.valid = "other"
        return response

    with (
        client(answer, LabelStudioAuth(HOME, PERSONAL)) as connection,
        pytest.raises(AuthenticationError, match="personal") as refusal,
    ):
        connection.get(f"{HOME}/x")
    assert label_studio.renewals == 2
    assert "API Tokens Settings" in str(refusal.value.hint)


def test_one_renewal_serves_all_threads() -> None:
    """Threads that find no access token wait for one renewal instead of each making one."""
    label_studio, auth = FakeLabelStudio(), LabelStudioAuth(HOME, PERSONAL)
    barrier = threading.Barrier(8)
    second = threading.Event()
    statuses: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        response = label_studio(request)
        if request.method == "POST":
            second.set() if label_studio.renewals > 1 else second.wait(0.3)  # time for the others to ask as well
        return response

    with client(answer, auth) as connection:

        def work() -> None:
            barrier.wait()
            statuses.append(connection.get(f"{HOME}/x").status_code)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 8
    assert label_studio.renewals == 1


def test_a_failed_renewal_leaves_the_auth_usable() -> None:
    """After a renewal that got no answer, the next request tries again and is not blocked."""
    label_studio = FakeLabelStudio()
    broken = [True]

    def answer(request: httpx.Request) -> httpx.Response:
        if broken.pop() if broken else False:
            raise httpx.ConnectError("refused")
        return label_studio(request)

    with client(answer, LabelStudioAuth(HOME, PERSONAL)) as connection:
        with pytest.raises(httpx.ConnectError):
            connection.get(f"{HOME}/x")
        assert connection.get(f"{HOME}/x").status_code == 200


@pytest.mark.parametrize(
    "url",
    ["http://ls.example:8081/x", "https://ls.example:8080/x", "http://ls.example/x", "http://ls.example.evil:8080/x"],
    ids=["port", "scheme", "default-port", "host"],
)
@pytest.mark.parametrize("token", [LEGACY, PERSONAL, ACCESS], ids=["legacy", "personal", "access"])
def test_other_origins_get_nothing(token: str, url: str) -> None:
    """A request to any other scheme, host or port goes out without the token, and buys none."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(401)

    with client(answer, LabelStudioAuth(HOME, token)) as connection:
        assert connection.get(url).status_code == 401
    assert [request.headers.get("authorization") for request in asked] == [None]


def test_default_ports_and_case_are_the_same_origin() -> None:
    """https://LS.example and https://ls.example:443 are one origin."""
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200)

    with client(answer, LabelStudioAuth("https://LS.example", LEGACY)) as connection:
        connection.get("https://ls.example:443/x")
    assert seen == [f"Token {LEGACY}"]


@pytest.mark.parametrize("token", [LEGACY, PERSONAL], ids=["legacy", "personal"])
def test_a_redirect_elsewhere_does_not_carry_the_token(token: str) -> None:
    """A client that follows redirects to another server shows it no token."""
    with RecordingServer(lambda _asked: Answer(b"image")) as elsewhere:

        def answer(asked: Asked) -> Answer:
            if asked.method == "POST":
                return Answer(json.dumps({"access": ACCESS}).encode())
            return Answer.redirect(f"{elsewhere.url}/image")

        with (
            RecordingServer(answer) as label_studio,
            httpx.Client(auth=LabelStudioAuth(label_studio.url, token), follow_redirects=True) as connection,
        ):
            assert connection.get(f"{label_studio.url}/tasks/1/resolve/").content == b"image"
        assert label_studio.asked[-1].token is not None
        assert [asked.token for asked in elsewhere.asked] == [None]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirected_renewal_does_not_take_the_personal_token_along(status: int) -> None:
    """The personal token lives for centuries: a redirect of the renewal is refused and not followed."""
    with (
        RecordingServer(lambda _asked: Answer(b'{"access": "stolen"}')) as elsewhere,
        RecordingServer(lambda _asked: Answer.redirect(f"{elsewhere.url}/api/token/refresh/", status)) as label_studio,
        LabelStudioClient(label_studio.url, PERSONAL) as connection,
    ):
        with pytest.raises(LabelStudioError, match="redirect") as refusal:
            connection.whoami()
        assert elsewhere.asked == []
    assert "LABEL_STUDIO_URL" in str(refusal.value.hint)


def test_legacy_tokens_switched_off_are_explained() -> None:
    """Label Studio's 401 for the switched-off kind leads to the switch, and to the other kind."""
    detail = "Authentication token no longer valid: legacy token authentication has been disabled for this organization"
    with (
        client(
            lambda _request: httpx.Response(401, json={"detail": detail}), LabelStudioAuth(HOME, LEGACY)
        ) as connection,
        pytest.raises(AuthenticationError, match="switched off") as refusal,
    ):
        connection.get(f"{HOME}/api/projects/?secret=1")
    assert "Organization > API Tokens Settings" in str(refusal.value.hint)
    assert "personal access token" in str(refusal.value.hint)
    assert refusal.value.where == f"{HOME}/api/projects/"


@pytest.mark.parametrize(
    ("token", "told"), [(LEGACY, "Copy the token again"), (ACCESS, "five minutes")], ids=["legacy", "access"]
)
def test_refused_tokens_are_explained_by_kind(token: str, told: str) -> None:
    """Each kind of token that is refused has its own remedy."""
    with (
        client(
            lambda _request: httpx.Response(401, json={"detail": "Invalid token."}), LabelStudioAuth(HOME, token)
        ) as http,
        pytest.raises(AuthenticationError, match=r"Invalid token\.") as refusal,
    ):
        http.get(f"{HOME}/x")
    assert told in str(refusal.value.hint)


@pytest.mark.parametrize("detail", ["Token is blacklisted", "Token is invalid or expired"])
def test_a_revoked_personal_token_is_explained(detail: str) -> None:
    """A personal token that is revoked or expired is named as such, in Label Studio's words."""
    answer = httpx.Response(401, json={"detail": detail, "code": "token_not_valid"})
    with (
        client(FakeLabelStudio(renewal=answer), LabelStudioAuth(HOME, PERSONAL)) as connection,
        pytest.raises(AuthenticationError, match=detail) as refusal,
    ):
        connection.get(f"{HOME}/x")
    assert "LABEL_STUDIO_API_KEY" in str(refusal.value.hint)


@pytest.mark.parametrize(
    "renewal",
    [
        httpx.Response(404, text="<html>"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"token": "x"}),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={"access": None}),
        httpx.Response(500),
    ],
    ids=["404", "html", "other-key", "list", "null", "500"],
)
def test_a_renewal_that_answers_nonsense_names_the_address(renewal: httpx.Response) -> None:
    """An address that is not Label Studio's is named as the likely cause."""
    with (
        client(FakeLabelStudio(renewal=renewal), LabelStudioAuth(HOME, PERSONAL)) as connection,
        pytest.raises(LabelStudioError, match=r"ls\.example:8080/api/token/refresh/") as refusal,
    ):
        connection.get(f"{HOME}/x")
    assert "LABEL_STUDIO_URL" in str(refusal.value.hint)


def test_an_access_token_without_an_end_is_used_until_it_is_refused() -> None:
    """A token that says nothing about its life is kept, not renewed at every request."""
    label_studio = FakeLabelStudio(renewal=httpx.Response(200, json={"access": "opaque"}))
    label_studio.valid = "opaque"
    with client(label_studio, LabelStudioAuth(HOME, PERSONAL)) as connection:
        assert [connection.get(f"{HOME}/x").status_code for _ in range(2)] == [200, 200]
    assert label_studio.renewals == 1


@pytest.mark.parametrize("token", [LEGACY, PERSONAL, ACCESS], ids=["legacy", "personal", "access"])
def test_tokens_are_never_shown(token: str, caplog: pytest.LogCaptureFixture) -> None:
    """A token is in no message, no representation and no log line, also when Label Studio repeats it."""
    caplog.set_level(logging.DEBUG)
    auth = LabelStudioAuth(HOME, token)
    echo = httpx.Response(401, json={"detail": f"unknown token {token}"})
    with client(lambda _request: echo, auth) as connection, pytest.raises(AuthenticationError) as refusal:
        connection.get(f"{HOME}/x")
    shown = f"{auth!r} {auth} {refusal.value} {refusal.value.summary} {refusal.value.as_json()} {caplog.text}"
    assert "unknown token ***" in shown
    assert token not in shown


@pytest.mark.parametrize("token", ["", "  ", "Token abc", "a\nb", "トークン", "a\x7fb"])
def test_what_can_not_be_a_token_is_refused_at_once(token: str) -> None:
    """A token with spaces, line breaks or foreign letters is refused before a header could break, unshown."""
    with pytest.raises(AuthenticationError) as refusal:
        LabelStudioAuth(HOME, token)
    assert not token.strip() or token not in str(refusal.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "ls.example"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    """Label Studio's address needs http(s) and a host; the setting is named."""
    with pytest.raises(UsageError, match="LABEL_STUDIO_URL"):
        LabelStudioAuth(url, LEGACY)


@pytest.mark.parametrize(
    ("text", "secrets", "shown"),
    [
        (f"{LEGACY}x is no good", [LEGACY], "***x is no good"),
        ("Connection refused, t is no token, don't", ["t"], "Connection refused, *** is no token, don't"),
        ("token: secret-secrets", ["secret"], "token: ***-secrets"),
        ("a.b", ["a.b", "b"], "***"),
        ("nothing", [], "nothing"),
    ],
)
def test_secrets_are_taken_out_of_messages_and_words_are_not(text: str, secrets: list[str], shown: str) -> None:
    """A short token, which many words contain, is only hidden where it stands alone."""
    assert redacted(text, *secrets) == shown
