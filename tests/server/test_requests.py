"""What clients get wrong, passwords, limits, metrics, and the page."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from model_server import CONFIG, ModelServer
from scripted_detector import WAIT_S, ScriptedDetector, detections


def assert_error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The one JSON shape of errors; the error itself."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "where", "expected", "got", "hint"}
    assert error["code"] == code
    assert error["message"]
    assert "Traceback" not in answer.text
    return error


JSON = {"Content-Type": "application/json"}
TASK = {"id": 1, "data": {"image": "/data/local-files/?d=a.png"}}


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
    ids=["empty", "cut short", "not UTF-8", "nested without end", "a list", "a text", "null"],
)
def test_a_malformed_body_is_the_clients_mistake(
    shared_server: ModelServer, path: str, content: bytes, told: str
) -> None:
    """Never a 500, always the same shape."""
    error = assert_error(shared_server.client.post(path, content=content, headers=JSON), 400, "bad_request")
    assert told in error["message"]


def test_half_a_surrogate_pair_does_no_harm(shared_server: ModelServer) -> None:
    """What no answer can be written with is answered all the same, and the server goes on."""
    body = b'{"tasks": [{"id": 1, "data": {"\\ud800": 1}}], "label_config": %s}' % json.dumps(CONFIG).encode()
    answer = shared_server.client.post("/predict", content=body, headers=JSON)
    assert 400 <= answer.status_code < 500, answer.text
    shared_server.client.post("/webhook", content=b'{"action": "\\uDC00"}', headers=JSON)
    for path in ("/state", "/", "/health"):
        assert shared_server.client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/setup", {"Origin": "http://["}),
        ("POST", f"/api/dm/actions?id=delete_tasks_predictions&project={'9' * 5000}", {"Authorization": "Token a"}),
        ("GET", "/jobs/x/failures?after=abc", {}),
        ("POST", "/training/abc/cancel", {}),
    ],
)
def test_odd_addresses_and_headers_are_the_clients_mistake(
    shared_server: ModelServer, method: str, path: str, headers: dict[str, str]
) -> None:
    """Never a 500, and always the one shape."""
    assert_error(shared_server.client.request(method, path, json={}, headers=headers), 400, "bad_request")


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/setup", {}, "schema"),
        ("/setup", {"schema": 5}, "schema"),
        ("/predict", {"label_config": CONFIG}, "tasks"),
        ("/predict", {"label_config": CONFIG, "tasks": []}, "tasks"),
        ("/predict", {"label_config": CONFIG, "tasks": {}}, "tasks"),
        ("/predict", {"label_config": CONFIG, "tasks": ["text"]}, "tasks.0"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"id": 1}]}, "tasks.0.data"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"id": "x", "data": {}}]}, "tasks.0.id"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"id": 1, "data": None}]}, "tasks.0.data"),
        ("/predict", {"tasks": [TASK]}, "label_config"),
        ("/predict", {"tasks": [TASK], "label_config": CONFIG, "params": {"context": 3}}, "params.context"),
        ("/webhook", {}, "action"),
    ],
)
def test_a_body_of_wrong_types_names_the_place(
    shared_server: ModelServer, path: str, body: dict[str, Any], where: str
) -> None:
    """The first wrong field is named, with what was expected."""
    error = assert_error(shared_server.client.post(path, json=body), 400, "bad_request")
    assert error["where"] == where
    assert error["expected"]


def test_an_address_that_is_no_text_is_an_error(shared_server: ModelServer) -> None:
    """A number where the image's address should be is named with its key."""
    body = {"tasks": [{"id": 1, "data": {"image": 5}}], "label_config": CONFIG}
    error = assert_error(shared_server.client.post("/predict", json=body), 422, "media")
    assert "image" in error["message"]


def test_a_malformed_configuration_is_an_error(shared_server: ModelServer) -> None:
    """Broken XML in a prediction request is said, not crashed on."""
    body = {"tasks": [TASK], "label_config": "<View><Image></View>"}
    assert_error(shared_server.client.post("/predict", json=body), 422, "label_config")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/static/../app.py", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("POST", "/train", 404, "not_found"),
    ],
)
def test_unknown_routes_and_methods_are_told_in_the_same_shape(
    shared_server: ModelServer, method: str, path: str, status: int, code: str
) -> None:
    """Also what no route answers has the one shape."""
    assert_error(shared_server.client.request(method, path, headers=JSON), status, code)


def test_more_tasks_than_allowed_are_refused_and_as_many_as_allowed_are_answered(
    make_server: Callable[..., ModelServer],
) -> None:
    """The limit is said; at the limit everything is answered."""
    server = make_server(max_tasks=20)
    uri = server.photograph("a.png")
    error = assert_error(server.predict(*[uri] * 21), 400, "bad_request")
    assert error["expected"] == "at most 20 tasks"
    assert len(server.predict(*[uri] * 20).json()["results"]) == 20


def test_500_tasks_at_once_are_answered_in_order(make_server: Callable[..., ModelServer]) -> None:
    """Label Studio sends a whole selection at once; every task gets its answer."""
    server = make_server(max_tasks=1000)
    uris = [server.photograph(f"{number % 7}.png", (number % 7 + 1, 0, 0)) for number in range(500)]
    uris[250] = "/data/local-files/?d=gone.png"
    results = server.predict(*uris).json()["results"]
    assert len(results) == 500
    assert [number for number, result in enumerate(results) if "result" not in result] == [250]
    assert server.detector.calls == 7


@pytest.mark.parametrize(
    ("header", "content"),
    [
        pytest.param(b"Content-Length: 100000000", b"", id="announced"),
        pytest.param(b"Transfer-Encoding: chunked", b"f4241\r\n" + b" " * 1_000_001, id="in chunks"),
        pytest.param(b"Content-Length: 1000001", b" " * 10, id="by a byte"),
    ],
)
def test_a_body_over_the_limit_is_refused(shared_server: ModelServer, header: bytes, content: bytes) -> None:
    """What is too large is refused without being read to its end, whether it announces its length or not."""
    port = shared_server.client.base_url.port
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        connection.sendall(head + header + b"\r\n\r\n" + content)
        answer = connection.makefile("rb").read()
    status, _, body = answer.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 413 ")
    error = json.loads(body)["error"]
    assert (error["code"], error["expected"]) == ("request_too_large", "at most 1000000 bytes")
    assert shared_server.client.get("/health").status_code == 200


def test_an_unforeseen_failure_is_a_sentence_for_the_client_and_a_traceback_for_the_log(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug answers 500 in the same shape, and the server goes on."""

    def broken() -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(server.service, "health", broken)
    answer = server.client.get("/health")
    assert_error(answer, 500, "error")
    assert "secret detail" not in answer.text
    assert "secret detail" in caplog.text
    assert server.client.get("/versions").status_code == 200


@pytest.mark.parametrize(
    "action", ["START_TRAINING", "ANNOTATION_CREATED", "ANNOTATIONS_DELETED", "PROJECT_UPDATED", "SOMETHING_NEW"]
)
def test_every_event_is_taken(shared_server: ModelServer, action: str) -> None:
    """Label Studio gets its 200 whatever it tells."""
    answer = shared_server.client.post("/webhook", json={"action": action, "project": {"id": 1, "title": "x"}})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["status"], told["action"]) == ("ok", action)


def test_with_a_password_only_the_forwarded_action_is_open(make_server: Callable[..., ModelServer]) -> None:
    """Everything asks for it; the forwarded action carries Label Studio's own token instead."""
    server = make_server(basic_auth="lab:パス:word")
    for path in ("/health", "/versions", "/metrics", "/", "/docs", "/status"):
        answer = server.client.get(path)
        assert_error(answer, 401, "authentication")
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert_error(server.client.post("/predict", json={}), 401, "authentication")
    right = httpx.BasicAuth("lab", "パス:word")
    assert server.client.get("/health", auth=right).status_code == 200
    assert server.client.get("/health", auth=httpx.BasicAuth("lab", "wrong")).status_code == 401
    for junk in ("Basic", "Basic %%%", "Bearer x", ""):
        assert server.client.get("/health", headers={"Authorization": junk}).status_code == 401
    assert_error(server.client.post("/webhook", json={"action": "START_TRAINING"}), 401, "authentication")
    assert server.client.post("/webhook", json={"action": "START_TRAINING"}, auth=right).status_code == 200
    forwarded = server.client.post("/api/dm/actions?id=delete_tasks_predictions&project=1")
    assert forwarded.json()["error"]["message"] == "the request carries no authorization"


@pytest.mark.parametrize(
    "query",
    ["", "?id=delete_tasks&project=1", "?id=delete_tasks_annotations&project=1", "?id=delete_tasks_predictions"],
    ids=["nothing", "tasks", "annotations", "no project"],
)
def test_no_other_action_of_label_studio_is_forwarded(shared_server: ModelServer, query: str) -> None:
    """Only the deletion of a project's predictions passes."""
    answer = shared_server.client.post(f"/api/dm/actions{query}", headers={"Authorization": "Token x"})
    assert_error(answer, 400, "bad_request")


def test_a_label_studio_that_is_gone_is_said_when_an_action_is_forwarded(shared_server: ModelServer) -> None:
    """The forwarded action fails with Label Studio's address, and nothing is claimed to be deleted."""
    answer = shared_server.client.post(
        "/api/dm/actions?id=delete_tasks_predictions&project=1", headers={"Authorization": "Token x"}
    )
    error = assert_error(answer, 502, "label_studio_unreachable")
    assert "127.0.0.1:9" in error["where"]


def test_metrics_count_requests_tasks_and_boxes(server: ModelServer) -> None:
    """Prometheus' text names what was answered and what failed."""
    server.predict(server.photograph("a.png"), "/data/local-files/?d=gone.png")
    server.client.get("/no/such/route")
    text = server.client.get("/metrics").text
    assert 'spica_tasks_total{outcome="predicted"} 1.0' in text
    assert 'spica_tasks_total{outcome="failed"} 1.0' in text
    assert "spica_boxes_total 2.0" in text
    assert "spica_images_total 1.0" in text
    assert "spica_model_ready 1.0" in text
    assert 'spica_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'route="other",status="404"' in text
    assert "/no/such/route" not in text


def test_the_page_says_what_is_served_and_escapes_what_others_wrote(server: ModelServer) -> None:
    """Model, state, project and failure are on the page; names can't become markup."""
    server.setup()
    server.predict("/data/local-files/?d=<script>alert(1)</script>.png")
    page = server.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for expected in ("gwhd.pth", "test-0001", "spike", "&lt;script&gt;"):
        assert expected in page.text
    assert "<script>alert" not in page.text
    assert server.client.get("/static/spica.css").status_code == 200
    assert server.client.get("/static/spica.js").status_code == 200
    assert "gwhd.pth" in server.client.get("/status").text


def test_failed_files_are_named_as_people_wrote_them(server: ModelServer) -> None:
    """Where a task's image is missing, its name is shown as it stands in the folder, not percent-encoded."""
    server.predict("/data/local-files/?d=%E7%A8%B2%201.png")
    assert "稲 1.png" in server.client.get("/state").json()["failures"][0]["reason"]
    assert "稲 1.png" in server.client.get("/").text


def test_the_documentation_of_the_routes_needs_no_other_server(shared_server: ModelServer) -> None:
    """/docs loads its scripts from here, and the routes' bodies are described."""
    page = shared_server.client.get("/docs").text
    assert "https://" not in page
    assert "swagger-ui-bundle.js" in page
    described = shared_server.client.get("/openapi.json").json()
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = described["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
    assert {"tasks", "label_config", "project", "params"} <= set(schema["properties"])


def test_tokens_do_not_reach_the_log(shared_server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    """What Label Studio sends along as access token is nowhere in the log."""
    caplog.set_level(logging.DEBUG)
    shared_server.setup(access_token="a-very-secret-token")
    shared_server.client.post("/setup", json={"access_token": "a-very-secret-token"})
    assert "a-very-secret-token" not in caplog.text


def test_many_boxes_are_all_given(make_server: Callable[..., ModelServer]) -> None:
    """Dense scenes are not silently cut at 100 boxes."""
    grid = [(x, y, x + 4.0, y + 4.0, 0.9) for x in range(0, 200, 5) for y in range(0, 100, 5)]
    server = make_server(ScriptedDetector(detections(*grid)))
    (prediction,) = server.predict(server.photograph("a.png")).json()["results"]
    assert len(prediction["result"]) == len(grid) == 800
