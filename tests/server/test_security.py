"""Who gets in over HTTP, and who does not: a table of attempts, and a table of what goes on working."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request

from model_server import CONFIG, ModelServer, model_servers
from spica.connect import RemoteError, RemoteServer
from spica.doctor import examine
from spica.errors import RequestError, UsageError
from spica.labelstudio.auth import WEBHOOK_HEADER, webhook_secret
from spica.project import ProjectKey
from spica.server.security import Access
from spica.settings import Settings

TOKEN = "0123456789" * 4
SECRET = webhook_secret(TOKEN)
JSON = {"Content-Type": "application/json"}
EVIL = {"Host": "evil.example:8010", "Origin": "http://evil.example:8010", **JSON}
"""A page whose name leads to this machine, so that its own scripts ask us ("DNS rebinding")."""

SCRIPT = {"Origin": "http://evil.example", **JSON}
"""A script of another site, if a browser let it send JSON."""

SETUP = json.dumps({"project": "1.1700000000", "schema": CONFIG, "extra_params": {"score_threshold": 0.1}}).encode()
PREDICT = json.dumps(
    {
        "tasks": [{"id": 1, "data": {"image": "/data/local-files/?d=a.png"}}],
        "label_config": CONFIG,
        "project": "1.1700000000",
    }
).encode()
START = json.dumps({"action": "START_TRAINING", "project": {"id": 1}}).encode()
CREATED = json.dumps({"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": 1}}).encode()
JOB = b'{"project": 1}'
BODIES = {"/setup": SETUP, "/predict": PREDICT, "/webhook": START, "/jobs/prelabel": JOB, "/training": JOB}
UTF_8 = {"Content-Type": "Application/JSON; charset=utf-8"}
FORMS = {
    "text": {"Content-Type": "text/plain"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "multipart": {"Content-Type": "multipart/form-data; boundary=x"},
    "no type": {},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server that could learn, with a photograph; what is refused leaves no trace in it."""
    with model_servers(tmp_path_factory.mktemp("guarded")) as make:
        made = make(token=TOKEN)
        made.photograph("a.png")
        yield made


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """The same for what goes on working, with a further name."""
    with model_servers(tmp_path_factory.mktemp("open")) as make:
        made = make(token=TOKEN, allowed_hosts=("ML.lab.example",))
        made.photograph("a.png")
        yield made


def attempts() -> Iterator[Any]:
    """Method, path, headers, body, the status of the refusal, and a word of its reason."""
    for path in ("/", "/health", "/state", "/jobs", "/training", "/metrics", "/events", "/docs", "/static/spica.js"):
        yield pytest.param("GET", path, EVIL, b"", 400, "name", id=f"rebinding: read {path}")
    for path, body in BODIES.items():
        yield pytest.param("POST", path, EVIL, body, 400, "name", id=f"rebinding: {path}")
        yield pytest.param("POST", path, SCRIPT, body, 400, "another site", id=f"a script: {path}")
        yield pytest.param("POST", path, {**JSON, "Origin": "null"}, body, 400, "another site", id=f"a frame: {path}")
        for name, headers in FORMS.items():
            yield pytest.param("POST", path, headers, body, 400, "not JSON", id=f"{name}: {path}")
    for host in (
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:80:evil.example",
        "192.168.1.5:8010",
        "2130706433",
        "host.docker.internal:8010",
    ):
        yield pytest.param("GET", "/health", {"Host": host}, b"", 400, "name", id=f"host {host}")
    port = {"Origin": "http://127.0.0.1:3000", **JSON}
    yield pytest.param("POST", "/setup", port, SETUP, 400, "another site", id="another server of this machine")
    yield pytest.param("POST", "/webhook", JSON, CREATED, 401, "secret", id="a forged event")
    for name, secret in {"a guess": "0" * 64, "empty": "", "of another token": webhook_secret("1" * 40)}.items():
        for action, body in {"submission": CREATED, "button": START}.items():
            headers = {WEBHOOK_HEADER: secret, **JSON}
            yield pytest.param("POST", "/webhook", headers, body, 401, "secret", id=f"a wrong secret, {name}: {action}")


@pytest.mark.parametrize(("method", "path", "headers", "body", "status", "reason"), list(attempts()))
def test_refused(
    server: ModelServer, method: str, path: str, headers: dict[str, str], body: bytes, status: int, reason: str
) -> None:
    """What a page of another site, or a forger, can send is refused in the one shape of errors, and nothing is done."""
    with server.client.stream(method, path, headers=headers, content=body) as answer:
        assert answer.status_code == status
        error = json.loads(answer.read())["error"]
    assert set(error) == {"code", "message", "where", "expected", "got", "hint"}
    assert reason in error["message"]
    assert server.detector.calls == 0
    assert (server.service.projects, server.service.failures) == ([], [])
    assert server.client.get("/training").json()["projects"] == []


def allowed() -> Iterator[Any]:
    """Method, path, headers, body and the status of what goes on working."""
    own = "http://127.0.0.1:PORT"
    for host in ("127.0.0.1:PORT", "localhost:PORT", "LOCALHOST", "[::1]:8010", "[::1]", "127.0.0.2", "ml.lab.example"):
        yield pytest.param("GET", "/health", {"Host": host}, b"", 200, id=f"host {host}")
    for path, body in {"/setup": SETUP, "/predict": PREDICT, "/webhook": START}.items():
        yield pytest.param("POST", path, {**JSON, "User-Agent": "heartex/1"}, body, 200, id=f"Label Studio: {path}")
        yield pytest.param("POST", path, UTF_8, body, 200, id=f"{path} utf-8")
    for path, status in {
        "/jobs/prelabel": 502,
        "/training": 502,
        "/jobs/x/stop": 404,
        "/training/1/cancel": 404,
    }.items():
        yield pytest.param("POST", path, {"Origin": own, **JSON}, JOB, status, id=f"our own page: {path}")
        yield pytest.param("POST", path, JSON, JOB, status, id=f"a program: {path}")
    proxied = {"Host": "ml.lab.example", "Origin": "https://ml.lab.example", **JSON}
    yield pytest.param("POST", "/setup", proxied, SETUP, 200, id="our page behind a proxy with TLS")
    yield pytest.param(
        "POST", "/webhook", {WEBHOOK_HEADER: SECRET, **JSON}, CREATED, 200, id="an event with the secret"
    )
    line = "/api/dm/actions?id=delete_tasks_predictions&project=1"
    yield pytest.param("POST", line, {"Authorization": "Token x"}, b"", 502, id="the tutorial's line")


@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), list(allowed()))
def test_goes_on_working(
    open_server: ModelServer,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    """Label Studio, programs, our own page, and names that were allowed: none of them is refused."""
    port = str(open_server.client.base_url.port)
    sent = {name: value.replace("PORT", port) for name, value in headers.items()}
    answer = open_server.client.request(method, path, headers=sent, content=body)
    assert answer.status_code == status, answer.text


def test_a_hook_sent_again_is_only_noted(open_server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    """The same event, recorded and sent again, has the server count in Label Studio, no more; no log has its secret."""
    caplog.set_level(logging.DEBUG, logger="spica")
    headers = {WEBHOOK_HEADER: SECRET, **JSON}
    body = json.dumps(
        {"action": "ANNOTATION_CREATED", "annotation": {"id": 7, "updated_at": "t"}, "project": {"id": 1}}
    )
    heard = [open_server.client.post("/webhook", content=body, headers=headers).json()["heard"] for _ in range(3)]
    assert heard == ["noted", "noted", "noted"]
    assert "ANNOTATION_CREATED" in caplog.text
    assert SECRET not in caplog.text


def test_predict_scans_no_ports(open_server: ModelServer) -> None:
    """A task's address on a closed port and one on a silent port get the same answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            ports = [closed.getsockname()[1], silent.getsockname()[1]]
        answers = [open_server.predict(f"http://127.0.0.1:{port}/a.png") for port in ports]
    told = [answer.text.replace(str(port), "PORT") for answer, port in zip(answers, ports, strict=True)]
    assert {answer.status_code for answer in answers} == {422}
    assert told[0] == told[1]


def test_extra_params_stay_where_a_request_does_not_speak_of_them(open_server: ModelServer) -> None:
    """Who only asks which version a project has, as `spica models activate` does, changes nothing; null clears."""
    named = open_server.setup(extra_params='{"score_threshold": 0.25}')["model_version"]
    assert open_server.setup()["model_version"] == named
    assert open_server.setup(extra_params=None)["model_version"] != named


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
@pytest.mark.parametrize(
    ("asked", "admitted"),
    [
        ("192.0.2.7:8010", True),
        ("[2001:db8::7]:8010", True),
        ("localhost", True),
        ("gpu", True),
        ("gpu.local:8010", True),
        ("GPU.lab.example:8010", True),
        ("host.docker.internal:8010", True),
        ("evil.example:8010", False),
        ("", False),
    ],
)
def test_a_server_that_others_may_reach(monkeypatch: pytest.MonkeyPatch, host: str, asked: str, admitted: bool) -> None:
    """It answers under every address, its machine's names and the names that were allowed, and no others."""
    monkeypatch.setattr("socket.gethostname", lambda: "gpu")
    monkeypatch.setattr("socket.getfqdn", lambda: "gpu.lab.example")
    access = Access.of(Settings(allowed_hosts="host.docker.internal, other.example"), host)
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [(b"host", asked.encode())]})
    if admitted:
        access.check(request)
    else:
        with pytest.raises(RequestError, match="name") as refusal:
            access.check(request)
        assert "--allowed-host" in str(refusal.value.hint)


def test_a_name_that_is_none() -> None:
    """An address in place of a name is said at the start."""
    with pytest.raises(UsageError, match="host name"):
        Access.of(Settings(allowed_hosts=("http://lab.example/spica",)), "127.0.0.1")


def test_commands_say_which_option_admits_the_name(open_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches the server under a name that it does not know is told what to start it with."""
    resolve = socket.getaddrinfo

    def at_home(host: Any, *others: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if host == "spica.lab.example" else host, *others, **more)

    monkeypatch.setattr("socket.getaddrinfo", at_home)
    url = f"http://spica.lab.example:{open_server.client.base_url.port}"
    wanted = "--allowed-host spica.lab.example"
    with RemoteServer(url, None) as remote, pytest.raises(RemoteError) as refusal:
        remote.state()
    assert wanted in str(refusal.value.hint)
    with RemoteServer(url, None) as remote, pytest.raises(RemoteError) as refused:
        remote.setup(ProjectKey(1), CONFIG)
    assert wanted in str(refused.value.hint)
    findings = examine(Settings(label_studio_url="http://127.0.0.1:9"), project=None, model_url=url)
    (found,) = [each for each in findings if each.check == "model-server-reachable"]
    assert wanted in str(found.hint)
