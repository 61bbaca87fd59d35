"""What a real Label Studio has sent, sent again: see tests/payloads/README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from model_server import ModelServer
from spica.labelstudio.auth import WEBHOOK_HEADER, webhook_secret

FOLDER = Path(__file__).resolve().parent.parent / "payloads"
PAYLOADS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
ACTIONS = {
    "START_TRAINING",
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "PROJECT_UPDATED",
    "TASKS_CREATED",
    "TASKS_DELETED",
}


def of(path: str) -> list[str]:
    """Names of the recorded requests to a route."""
    return [name for name, payload in PAYLOADS.items() if payload["request"]["path"] == path]


def replay(server: ModelServer, name: str, headers: Mapping[str, str] | None = None) -> Any:
    """The JSON with which a recorded request is answered, its photographs being there."""
    request = PAYLOADS[name]["request"]
    body = request["body"]
    for task in (body or {}).get("tasks", []):
        if request["path"] == "/predict":
            server.photograph(unquote(task["data"]["image"].partition("?d=")[2]))
    content = json.dumps(body).encode() if body is not None else None
    sent = {**request["headers"], **(headers or {})}
    answer = server.client.request(request["method"], request["path"], content=content, headers=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_all_kinds_are_recorded() -> None:
    """Of every route that Label Studio calls, and every event, there is a recorded request, with its origin."""
    assert {"/health", "/setup", "/predict", "/webhook", "/versions"} == {
        payload["request"]["path"] for payload in PAYLOADS.values()
    }
    assert {PAYLOADS[name]["request"]["body"]["action"] for name in of("/webhook")} == ACTIONS
    for payload in PAYLOADS.values():
        assert payload["origin"].keys() == {"label_studio", "recorded", "caused_by"}
        assert payload["request"]["headers"]["user-agent"].startswith(("heartex/", "python-requests/"))


def test_no_secrets_are_recorded() -> None:
    """No file holds a token of either kind."""
    for name, payload in PAYLOADS.items():
        text = json.dumps(payload)
        assert re.search(r"\b[0-9a-f]{40}\b|eyJ[\w-]+\.", text) is None, name
    assert {PAYLOADS[name]["request"]["body"]["access_token"] for name in of("/setup")} == {"REDACTED"}


@pytest.mark.parametrize("name", of("/health"))
def test_health(server: ModelServer, name: str) -> None:
    """The server says that it is up."""
    assert replay(server, name)["status"] == "UP"


@pytest.mark.parametrize("name", of("/setup"))
def test_setup(server: ModelServer, name: str) -> None:
    """The server tells its version and finds nothing to complain about."""
    answer = replay(server, name)
    assert answer["model_version"].startswith("test-0001.")
    assert answer["problems"] == []


@pytest.mark.parametrize("name", of("/versions"))
def test_versions(server: ModelServer, name: str) -> None:
    """The server lists the versions that it has told."""
    told = server.setup()["model_version"]
    assert replay(server, name) == {"versions": [told]}


@pytest.mark.parametrize("name", of("/predict"))
def test_predict(server: ModelServer, name: str) -> None:
    """There is one result for each task, in the form and under the version that Label Studio stores."""
    body = PAYLOADS[name]["request"]["body"]
    version = server.setup(body["label_config"])["model_version"]
    results = replay(server, name)["results"]
    assert len(results) == len(body["tasks"])
    for result in results:
        assert result.keys() == {"result", "score", "model_version"}
        assert result["model_version"] == version
        assert 0 <= result["score"] <= 1
        assert result["result"]


def test_interactive(server: ModelServer) -> None:
    """The one detection in the drawn rectangle is answered, though it is below the threshold, with an id of its own."""
    (result,) = replay(server, "predict-interactive")["results"]
    (suggestion,) = result["result"]
    assert (suggestion["type"], suggestion["score"]) == ("rectanglelabels", pytest.approx(0.3))
    assert [suggestion["value"][name] for name in ("x", "y", "width", "height")] == [30, 60, 10, 20]
    ids = {region["id"] for region in PAYLOADS["predict-interactive"]["request"]["body"]["params"]["context"]["result"]}
    assert suggestion["id"] not in ids


@pytest.mark.parametrize("name", of("/webhook"))
def test_webhook(make_server: Callable[..., ModelServer], name: str) -> None:
    """Every event is taken note of: with the secret of our webhook, and START_TRAINING, which has none, without."""
    server = make_server(token="0" * 40)
    action = PAYLOADS[name]["request"]["body"]["action"]
    secret = {} if action == "START_TRAINING" else {WEBHOOK_HEADER: webhook_secret("0" * 40)}
    answer = replay(server, name, secret)
    assert (answer["status"], answer["action"]) == ("ok", action)
    learned_from = {"START_TRAINING", "ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"}
    wanted = "noted" if action in {*learned_from, "ANNOTATIONS_DELETED"} else "ignored"
    assert answer["heard"] == wanted
