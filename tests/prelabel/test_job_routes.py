"""The routes of the bulk jobs, without a Label Studio: who may ask, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from model_server import ModelServer, make_server, shared_server
from scripted_detector import WAIT_S

__all__ = ["make_server", "shared_server"]
MakeServer = Callable[..., ModelServer]


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        pytest.param({"Content-Type": "text/plain"}, b'{"project": 1}', 400, id="a form of another site"),
        pytest.param({}, b'{"project": 1}', 400, id="no content type"),
        pytest.param(
            {"Content-Type": "application/json", "Origin": "http://evil.example"},
            b'{"project": 1}',
            400,
            id="a script of another site",
        ),
        pytest.param({"Content-Type": "application/json"}, b"{", 400, id="malformed"),
        pytest.param({"Content-Type": "application/json"}, b"{}", 400, id="no project"),
        pytest.param({"Content-Type": "application/json"}, b'{"project": 0}', 400, id="no number of a project"),
        pytest.param({"Content-Type": "application/json"}, b'{"project": 1, "task": [3]}', 400, id="a misspelt name"),
        pytest.param({"Content-Type": "application/json"}, b'{"project": 1}', 401, id="no token"),
    ],
)
def test_refused(shared_server: ModelServer, headers: dict[str, str], content: bytes, status: int) -> None:
    """A job is started by a program or our own page only, with a body that is understood whole, and with a token."""
    answer = shared_server.client.post("/jobs/prelabel", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "where", "expected", "got", "hint"}
    assert shared_server.client.get("/jobs").json() == {"jobs": []}


def test_a_label_studio_that_is_not_there(shared_server: ModelServer) -> None:
    """Without a Label Studio a job is refused at once, with its address."""
    answer = shared_server.client.post("/jobs/prelabel", json={"project": 1}, headers={"X-Api-Key": "0" * 40})
    assert answer.status_code == 502
    assert "127.0.0.1:9" in answer.json()["error"]["where"]
    assert "0" * 40 not in answer.text


def test_another_label_studio_than_the_server_s(shared_server: ModelServer) -> None:
    """A token is never sent to another Label Studio than the one that the caller means."""
    body = {"project": 1, "label_studio_url": "http://127.0.0.1:8080"}
    answer = shared_server.client.post("/jobs/prelabel", json=body, headers={"X-Api-Key": "0" * 40})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "usage")


@pytest.mark.parametrize("path", ["/jobs/none", "/jobs/none/failures"])
def test_unknown_job(shared_server: ModelServer, path: str) -> None:
    """A job that is not known is a 404 in the one shape of errors."""
    answer = shared_server.client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_stopping_asks_the_same_of_its_callers(shared_server: ModelServer) -> None:
    """Another site can't stop jobs either."""
    assert shared_server.client.post("/jobs/none/stop", content=b"").status_code == 400
    assert shared_server.client.post("/jobs/none/stop", json={}).status_code == 404


def test_basic_auth_guards_the_jobs(make_server: MakeServer) -> None:
    """With --basic-auth nobody sees, starts or stops jobs without it; Label Studio's token comes beside it."""
    guarded = make_server(basic_auth="me:secret").client
    for method, path in [("GET", "/jobs"), ("GET", "/state"), ("GET", "/events"), ("POST", "/jobs/prelabel")]:
        assert guarded.request(method, path, json={"project": 1}).status_code == 401, path
    answer = guarded.post("/jobs/prelabel", json={"project": 1}, auth=("me", "secret"), headers={"X-Api-Key": "0" * 40})
    assert answer.status_code == 502, answer.text


def test_a_project_that_is_slow_to_start_holds_no_other_up(make_server: MakeServer) -> None:
    """While Label Studio takes its time over one project, a job of another is begun or refused."""
    asked, go = threading.Event(), threading.Event()

    class SlowLabelStudio(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/projects/1/"):
                asked.set()
                go.wait(WAIT_S)
            self.send_error(404)

    studio = ThreadingHTTPServer(("127.0.0.1", 0), SlowLabelStudio)
    threading.Thread(target=studio.serve_forever, daemon=True).start()
    client = make_server(label_studio_url=f"http://127.0.0.1:{studio.server_port}").client
    headers = {"X-Api-Key": "0" * 40}
    with ThreadPoolExecutor(1) as pool:
        try:
            slow = pool.submit(client.post, "/jobs/prelabel", json={"project": 1}, headers=headers)
            assert asked.wait(WAIT_S)
            other = client.post("/jobs/prelabel", json={"project": 2}, headers=headers, timeout=WAIT_S / 2)
            assert (other.status_code, slow.done()) == (502, False), other.text
        finally:
            go.set()
        assert slow.result().status_code == 502
    studio.shutdown()
    studio.server_close()


def test_events_end_with_the_server(make_server: MakeServer) -> None:
    """A page that is open does not keep the server from stopping; it is told the state at once."""
    server = make_server()
    with server.client.stream("GET", "/events") as events:
        lines = events.iter_lines()
        assert next(lines) == "event: page"
        assert "test-0001" in next(lines)


def test_the_page_offers_to_predict_a_project(shared_server: ModelServer) -> None:
    """The page has a form for a whole project, with a field for the token where the server has none."""
    page = shared_server.client.get("/").text
    assert 'id="prelabel"' in page
    assert 'name="token"' in page
