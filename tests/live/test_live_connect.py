"""Connecting the model server with a real Label Studio, by the form's own request and by ``spica connect``."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr

from learning_lab import until
from live_model import ANSWER, TIMEOUT_S, Folder, LiveModel, ServeModel, open_task, retrieve
from scripted_detector import WAIT_S, ScriptedDetector
from spica.connect import connect
from spica.labelstudio.auth import WEBHOOK_HEADER, webhook_secret
from spica.labelstudio.client import LabelStudioClient, webhook_url
from spica.labelstudio.config import ExtraParams
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.server.jobs import Jobs
from spica.server.learning import Learning
from spica.settings import Settings

pytestmark = pytest.mark.label_studio

BASIC = {"auth_method": "BASIC_AUTH", "basic_auth_user": "annotator", "basic_auth_pass": "pass:word"}


def form(model: LiveModel, project: Project, **fields: Any) -> dict[str, Any]:
    """What the form Connect Model sends at "Validate and Save", as seen in Chromium."""
    return {
        "project": str(project.id),
        "title": "Faster R-CNN",
        "url": model.url,
        "auth_method": "NONE",
        "extra_params": "",
        "is_interactive": True,
        **fields,
    }


def hooks(client: LabelStudioClient, project: Project) -> list[str]:
    """Addresses that Label Studio tells about the project's events."""
    return [hook.url for hook in client.webhooks(project.id) if hook.is_active and hook.sends_all_actions]


@pytest.mark.parametrize(
    ("basic_auth", "fields", "threshold"),
    [
        pytest.param(None, {}, None, id="no authentication, extra params empty"),
        pytest.param(None, {"extra_params": '{"score_threshold": 0.25}'}, 0.25, id="extra params as the form's text"),
        pytest.param(None, {"extra_params": None, "is_interactive": False}, None, id="extra params null"),
        pytest.param("annotator:pass:word", BASIC, None, id="basic auth"),
    ],
)
def test_form(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
    basic_auth: str | None,
    fields: dict[str, Any],
    threshold: float | None,
) -> None:
    """The form's request is answered Connected at the first click, with a webhook and with the version."""
    model = serve_model(label_studio, basic_auth=basic_auth)
    answer = client.call("POST", "/api/ml/", json=form(model, project, **fields), timeout_s=TIMEOUT_S)
    version = model.predictor.spec(project.label_config, ExtraParams(threshold)).version
    assert (answer["state"], answer["readable_state"]) == ("CO", "Connected")
    assert answer["model_version"] == version
    assert answer["title"] == "Faster R-CNN"
    assert hooks(client, project) == [webhook_url(model.url)]


def test_wrong_password(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, serve_model: ServeModel
) -> None:
    """With a wrong password Label Studio says that the authentication is at fault, and connects nothing."""
    model = serve_model(label_studio, basic_auth="annotator:other")
    with pytest.raises(Exception, match="authentication parameters"):
        client.call("POST", "/api/ml/", json=form(model, project, **BASIC), timeout_s=TIMEOUT_S)
    assert client.backends(project.id) == []


def test_while_the_model_loads(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
) -> None:
    """While the model loads, connecting works at once, and an opened task waits for its boxes instead of failing."""
    loaded = threading.Event()
    detector = ScriptedDetector(ANSWER)

    def load() -> ScriptedDetector:
        assert loaded.wait(WAIT_S * 4)
        return detector

    model = serve_model(label_studio, detector, load=load)
    (task,) = folder.tasks(client, project.id, ["a.png"])
    try:
        answer = client.call("POST", "/api/ml/", json=form(model, project), timeout_s=TIMEOUT_S)
        assert answer["state"] == "CO"
        assert model.http.get("/health").json()["model"]["state"] == "loading"
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(open_task, client, task)
            assert model.engine.submitted.wait(WAIT_S)
            loaded.set()
            assert len(opened.result()["predictions"]) == 1
    finally:
        loaded.set()


def test_spica_connect(client: LabelStudioClient, project: Project, model: LiveModel) -> None:
    """After ``connect`` title, version and the project's choice are one; a second time changes nothing."""
    first = connect(client, project.id, model_url=model.url)
    rows = client.backends(project.id)
    again = connect(client, project.id, model_url=model.url)
    assert first == again
    assert client.backends(project.id) == rows
    (row,) = rows
    assert row.is_connected
    assert row.is_interactive
    assert row.title == row.model_version == first.version == model.spec(client, project.id).version
    assert client.project(project.id).model_version == first.version
    assert hooks(client, project) == [webhook_url(model.url)]


def shown_scores(client: LabelStudioClient, project: Project) -> list[float | None]:
    """The Data Manager's column Prediction score, by ascending task."""
    page = client.call("GET", "/api/tasks/", params={"project": project.id, "fields": "all"})
    return [row["predictions_score"] for row in sorted(page["tasks"], key=lambda row: int(row["id"]))]


def test_spica_connect_mends_the_forms_title(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """A model connected by the form under a title of one's own shows no scores; ``connect`` afterwards mends that."""
    folder.tasks(client, project.id, ["a.png"])
    row = client.call("POST", "/api/ml/", json=form(model, project), timeout_s=TIMEOUT_S)
    retrieve(client, project.id)
    assert shown_scores(client, project) == [None]
    connect(client, project.id, model_url=model.url)
    (mended,) = client.backends(project.id)
    assert mended.id == row["id"]
    assert mended.title == mended.model_version
    assert shown_scores(client, project) == [pytest.approx(0.8)]


def test_extra_params(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> None:
    """Other extra params give another version, whose predictions the next retrieval stores beside the old ones."""
    (task,) = folder.tasks(client, project.id, ["a.png"])
    before = client.connect_backend(project.id, url=model.url)
    retrieve(client, project.id)
    after = client.connect_backend(project.id, url=model.url, extra_params={"score_threshold": 0.25})
    retrieve(client, project.id)
    assert before.model_version != after.model_version
    assert after.title == after.model_version
    boxes = {each.model_version: len(each.result) for each in client.predictions_of_task(task)}
    assert boxes == {before.model_version: 2, after.model_version: 3}
    assert model.detector.calls == 1


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of the events that the server took note of."""
    return [record.getMessage() for record in caplog.records if record.msg == "project %s: event %s, %s"]


@pytest.mark.parametrize("basic_auth", [None, "annotator:pass:word"], ids=["no authentication", "basic auth"])
def test_events(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
    caplog: pytest.LogCaptureFixture,
    basic_auth: str | None,
) -> None:
    """Start Training and a submission reach the model server, which answers them while the network is computing.

    That holds with Basic Auth too, although Label Studio sends no password with its events, but our secret.
    """
    caplog.set_level(logging.INFO, logger="spica.server.app")
    model = serve_model(label_studio, basic_auth=basic_auth)
    busy, submitted = folder.tasks(client, project.id, ["a.png", "b.png"])
    pair = ("annotator", "pass:word") if basic_auth is not None else None
    row = client.connect_backend(project.id, url=model.url, basic_auth=pair)
    (hook,) = client.webhooks(project.id)
    assert hook.headers == {WEBHOOK_HEADER: webhook_secret(label_studio.credentials.token)}
    model.detector.go.clear()
    with ThreadPoolExecutor(1) as pool:
        try:
            opened = pool.submit(open_task, client, busy)
            assert model.detector.begun.wait(WAIT_S)
            client.call("POST", f"/api/ml/{row.id}/train", json={}, timeout_s=TIMEOUT_S)
            client.call("POST", f"/api/tasks/{submitted}/annotations/", json={"result": [], "lead_time": 3.5})
            assert not opened.done()
        finally:
            model.detector.go.set()
        assert len(opened.result()["predictions"]) == 1
    assert f"project {project.id}: event START_TRAINING, noted" in heard(caplog)
    assert f"project {project.id}: event ANNOTATION_CREATED, noted" in heard(caplog)
    assert client.backends(project.id)[0].is_connected


@pytest.mark.parametrize("by", ["spica connect", "the server itself"])
def test_events_of_a_model_that_the_form_has_connected(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    model: LiveModel,
    caplog: pytest.LogCaptureFixture,
    by: str,
) -> None:
    """They are refused, with the command that mends it, until ``connect``, or the server where the switch is on, has
    given them the secret; what else is set in the webhook stays.
    """
    caplog.set_level(logging.INFO, logger="spica.server")
    first, second = folder.tasks(client, project.id, ["a.png", "b.png"])
    client.call("POST", "/api/ml/", json=form(model, project), timeout_s=TIMEOUT_S)
    (hook,) = client.webhooks(project.id)
    chosen = {"headers": {"X-Mine": "1"}, "send_for_all_actions": False, "actions": ["ANNOTATION_CREATED"]}
    client.call("PATCH", f"/api/webhooks/{hook.id}/", json=chosen)
    client.call("POST", f"/api/tasks/{first}/annotations/", json={"result": [], "lead_time": 3.5})
    assert heard(caplog) == []
    assert "spica connect" in caplog.text
    if by == "spica connect":
        connect(client, project.id, model_url=model.url)
    else:
        client.call("PATCH", f"/api/projects/{project.id}/", json={"start_training_on_annotation_update": True})
        token = SecretStr(label_studio.credentials.token)
        settings = Settings(label_studio_url=label_studio.url, label_studio_api_key=token, data_dir=model.data_dir)
        learning = Learning(model.service, Jobs(model.service, settings), settings)
        learning.start()
        try:
            until(lambda: WEBHOOK_HEADER in client.webhooks(project.id)[0].headers, "the webhook got no secret")
        finally:
            learning.close()
    (now,) = client.webhooks(project.id)
    assert now.headers.keys() == {"X-Mine", WEBHOOK_HEADER}
    assert (now.sends_all_actions, now.actions) == (False, ("ANNOTATION_CREATED",))
    client.call("POST", f"/api/tasks/{second}/annotations/", json={"result": [], "lead_time": 3.5})
    assert f"project {project.id}: event ANNOTATION_CREATED, noted" in heard(caplog)


def test_a_button_that_label_studio_has_sent(client: LabelStudioClient, project: Project, model: LiveModel) -> None:
    """Start Training is believed, though it carries no secret: what is new is counted."""
    row = client.connect_backend(project.id, url=model.url)
    client.call("POST", f"/api/ml/{row.id}/train", json={}, timeout_s=TIMEOUT_S)
    (standing,) = until(lambda: model.http.get("/training").json()["projects"], "nobody has looked")
    assert standing["project"] == project.id
    assert "nothing new" in standing["note"]


def test_a_button_that_label_studio_did_not_send(
    client: LabelStudioClient, project: Project, model: LiveModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A forged START_TRAINING makes the server look into Label Studio once, and nothing else."""
    caplog.set_level(logging.INFO, logger="spica.server")
    created = client.call("GET", f"/api/projects/{project.id}/")["created_at"]
    almost = created[:-2] + str((int(created[-2]) + 1) % 10) + "Z"
    forged = {"action": "START_TRAINING", "project": {"id": project.id, "created_at": almost}}
    assert model.http.post("/webhook", json=forged).json()["heard"] == "noted"
    until(lambda: "not Label Studio's" in caplog.text, "nobody has looked")
    assert model.http.get("/training").json()["projects"] == []
    assert created not in caplog.text
