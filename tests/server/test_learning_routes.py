"""The routes of the learning over HTTP: who may ask, and what is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from model_server import ModelServer


@pytest.mark.parametrize(
    ("path", "headers", "content", "status"),
    [
        pytest.param("/training", {"Content-Type": "text/plain"}, b'{"project": 1}', 400, id="a form of another site"),
        pytest.param(
            "/training",
            {"Content-Type": "application/json", "Origin": "http://evil.example"},
            b'{"project": 1}',
            400,
            id="a script of another site",
        ),
        pytest.param("/training", {"Content-Type": "application/json"}, b'{"project": 0}', 400, id="no project"),
        pytest.param("/training", {"Content-Type": "application/json"}, b'{"projects": 1}', 400, id="a misspelt name"),
        pytest.param("/training", {"Content-Type": "application/json"}, b'{"project": 1}', 401, id="no token"),
        pytest.param("/training/1/cancel", {"Content-Type": "text/plain"}, b"", 400, id="cancel by another site"),
        pytest.param("/training/1/cancel", {"Content-Type": "application/json"}, b"{}", 404, id="nothing to cancel"),
    ],
)
def test_refused(server: ModelServer, path: str, headers: dict[str, str], content: bytes, status: int) -> None:
    """A training is started and cancelled by a program or our own page only, and with the server's own token."""
    answer = server.client.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "where", "expected", "got", "hint"}


def test_basic_auth_guards_the_trainings(make_server: Callable[..., ModelServer]) -> None:
    """With --basic-auth nobody sees, starts or cancels trainings without it."""
    guarded = make_server(basic_auth="me:secret").client
    for method, path in [("GET", "/training"), ("POST", "/training"), ("POST", "/training/1/cancel")]:
        assert guarded.request(method, path, json={"project": 1}).status_code == 401, path


def test_the_state_tells_of_the_learning(server: ModelServer) -> None:
    """Without a token that is said, in /state and on the page, which has no button then."""
    assert server.client.get("/training").json() == server.client.get("/state").json()["learning"]
    assert server.client.get("/training").json()["token"] is False
    page = server.client.get("/").text
    assert "LABEL_STUDIO_API_KEY" in page
    assert 'id="train"' not in page
