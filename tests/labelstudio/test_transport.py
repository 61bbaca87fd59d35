"""Retries and refusals, without a network."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest

from spica import retry
from spica.errors import (
    AuthenticationError,
    LabelStudioError,
    LabelStudioRefusedError,
    LabelStudioUnreachableError,
    UsageError,
)
from spica.labelstudio.client import IMAGE_REGEX, LabelStudioClient, is_within

TOKEN = "0123456789abcdef0123456789abcdef01234567"
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BRIEF_FIRST_S", 0.0)


class Script:
    """Answers one after the other, the last for ever; exceptions are raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Remember the request and give the next answer."""
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def connected(script: Answer, url: str = "http://ls.example", token: str | None = TOKEN) -> LabelStudioClient:
    return LabelStudioClient(url, token, transport=httpx.MockTransport(script))


OK = httpx.Response(200, json={"id": 1, "email": "a@b.c"})
LOCKED = httpx.Response(500, json={"detail": "… database-is-locked-errors …"})


@pytest.mark.parametrize(
    "trouble",
    [httpx.ConnectError("refused"), httpx.RemoteProtocolError("gone"), httpx.Response(503), LOCKED],
    ids=["refused", "cut off", "gateway", "database locked"],
)
def test_reading_is_tried_again(trouble: httpx.Response | Exception) -> None:
    """A passing trouble while reading is got over."""
    script = Script(trouble, trouble, OK)
    with connected(script) as client:
        assert client.whoami().email == "a@b.c"
    assert len(script.requests) == 3


def test_reading_gives_up() -> None:
    """A lasting trouble ends in an error that says how to start Label Studio."""
    script = Script(httpx.ConnectError("refused"))
    with connected(script) as client, pytest.raises(LabelStudioUnreachableError, match="start Label Studio"):
        client.whoami()
    assert len(script.requests) == 4


@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), LOCKED], ids=["refused", "database locked"])
def test_writing_is_not_repeated(trouble: httpx.Response | Exception) -> None:
    """A request that stores something is sent once only."""
    script = Script(trouble)
    with connected(script) as client, pytest.raises(LabelStudioError):
        client.create_predictions(1, [{"task": 1}])
    assert len(script.requests) == 1


def test_timeouts_are_not_repeated() -> None:
    """A server that is too slow is not asked again and again."""
    script = Script(httpx.ReadTimeout("slow"))
    with connected(script) as client, pytest.raises(LabelStudioUnreachableError, match="in time"):
        client.whoami()
    assert len(script.requests) == 1


@pytest.mark.parametrize("url", ["http://ls.example/sub", "http://ls.example/sub/"], ids=["bare", "slash"])
def test_sub_path(url: str) -> None:
    """A Label Studio below a sub-path is asked below it."""
    script = Script(OK)
    with connected(script, url) as client:
        client.whoami()
    assert str(script.requests[0].url) == "http://ls.example/sub/api/current-user/whoami"


@pytest.mark.parametrize(
    "url", ["", "ls.example:8080", "ftp://ls.example", "http://"], ids=["empty", "bare", "ftp", "no host"]
)
def test_no_address(url: str) -> None:
    """What is no address is refused before anything is sent."""
    with pytest.raises(UsageError, match="not a web address"):
        LabelStudioClient(url)


def test_validation_errors_are_told() -> None:
    """Label Studio's detail and its validation errors are in the error."""
    body = {"detail": "Validation error", "validation_errors": {"title": ["too short", "too plain"]}}
    with (
        connected(Script(httpx.Response(400, json=body))) as client,
        pytest.raises(LabelStudioRefusedError, match="Validation error, title: too short, too plain") as caught,
    ):
        client.project(1)
    assert caught.value.http_status == 400


def test_no_secrets_in_errors() -> None:
    """A token that Label Studio echoes does not get into the error."""
    body = {"detail": f"{TOKEN} is no good"}
    with connected(Script(httpx.Response(400, json=body))) as client, pytest.raises(LabelStudioError) as caught:
        client.project(1)
    assert TOKEN not in str(caught.value)
    assert "***" in str(caught.value)


def test_html_is_not_label_studio() -> None:
    """A page instead of JSON says that the address is wrong."""
    page = httpx.Response(200, html="<html>hello</html>")
    with connected(Script(page)) as client, pytest.raises(LabelStudioError, match="check the address"):
        client.whoami()


def test_another_shape_is_not_label_studio() -> None:
    """JSON that is not what Label Studio answers is an error and not a crash."""
    with (
        connected(Script(httpx.Response(200, json=["?"]))) as client,
        pytest.raises(LabelStudioError, match="unexpected"),
    ):
        client.whoami()


def test_redirect() -> None:
    """A redirect is not followed with the token, but named."""
    script = Script(httpx.Response(301, headers={"location": "https://ls.example/"}))
    with connected(script) as client, pytest.raises(LabelStudioError, match=r"https://ls\.example/"):
        client.whoami()
    assert len(script.requests) == 1


def test_without_a_token() -> None:
    """Without a token, Label Studio's 401 says which to give."""
    answer = httpx.Response(401, json={"detail": "Authentication credentials were not provided."})
    with connected(Script(answer), token=None) as client, pytest.raises(AuthenticationError, match="--token"):
        client.whoami()


@pytest.mark.parametrize(
    ("path", "folder", "within"),
    [
        ("/a/b", "/a", True),
        ("/a/b/", "/a/b", True),
        ("/a", "/a/b", False),
        ("/ab", "/a", False),
        ("/a/../b", "/a", False),
        ("C:\\Images\\x", "c:\\images", True),
        ("C:\\x", "/x", False),
        ("/a", "", False),
    ],
)
def test_is_within(path: str, folder: str, *, within: bool) -> None:
    """Folders are compared part by part, as the system that they belong to does."""
    assert is_within(path, folder) is within


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("a.jpg", True),
        ("A.JPEG", True),
        ("a.b.png", True),
        ("._a.jpg", False),
        ("a.tif", False),
        ("jpg", False),
        ("a.jpg.txt", False),
    ],
)
def test_image_regex(name: str, *, matches: bool) -> None:
    """Names of images that a browser shows match as Label Studio matches them."""
    assert bool(re.compile(IMAGE_REGEX).match(name)) is matches


@pytest.mark.parametrize("rows", [[], [{"id": 1, "data": {}}]], ids=["none", "the same again"])
def test_tasks_that_are_counted_and_never_given_are_an_error(rows: list[dict[str, object]]) -> None:
    """Reading a project's tasks neither asks for ever nor ends early as if these were all."""
    script = Script(*[httpx.Response(200, json={"tasks": rows, "total": 3})] * 10, AssertionError("asks for ever"))
    with connected(script) as client, pytest.raises(LabelStudioError, match="counts tasks"):
        list(client.iter_tasks(1))


def test_tasks_that_are_deleted_between_counting_and_reading_are_no_error() -> None:
    """The next look finds none, and that was all."""
    pages = [{"tasks": [{"id": 1, "data": {}}], "total": 3}, {"tasks": [], "total": 2}, {"tasks": [], "total": 0}]
    with connected(Script(*(httpx.Response(200, json=page) for page in pages))) as client:
        assert [task.id for task in client.iter_tasks(1)] == [1]
