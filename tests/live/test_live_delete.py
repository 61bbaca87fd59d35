"""The tutorial's own line, aimed at the model's port: delete the predictions of a project."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from label_studio_helpers import delete_project, import_tasks
from live_model import TIMEOUT_S, Folder, LiveModel, retrieve, stored
from spica.connect import connect
from spica.labelstudio.backup import restore
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project

pytestmark = pytest.mark.label_studio


def tutorials_line(
    model: LiveModel, project: int, token: str, action: str = "delete_tasks_predictions", narrowed: str = ""
) -> httpx.Response:
    """``curl -H 'Authorization: Token …' -X POST "http://127.0.0.1:8010/api/dm/actions?id=…&project=…"``."""
    address = f"{model.url}/api/dm/actions?id={action}&project={project}{narrowed}"
    headers = {"Authorization": f"Token {token}"}
    return httpx.post(address, headers=headers, trust_env=False, timeout=TIMEOUT_S)


def backups(model: LiveModel) -> list[Path]:
    """Files that were written before something was deleted."""
    return sorted(model.data_dir.glob("backups/*"))


def content(client: LabelStudioClient, project: Project) -> list[tuple[int, str, float | None, str]]:
    """Everything stored, without ids and times."""
    found = client.iter_predictions(project.id)
    return [(each.task, each.model_version, each.score, json.dumps(each.result, sort_keys=True)) for each in found]


@pytest.fixture
def predicted(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> list[int]:
    """Tasks with a prediction each."""
    tasks = folder.tasks(client, project.id, ["a.png", "b.png", "c.png"])
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    return tasks


def test_the_tutorials_line(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    model: LiveModel,
    predicted: list[int],
) -> None:
    """The line deletes all predictions of its project and no others, and what it deleted can be put back."""
    other = client.create_project("another project", project.label_config)
    try:
        (kept,) = import_tasks(client, other.id, [{"data": {"image": "/data/local-files/?d=x.png"}}])
        item = {"task": kept, "model_version": "kept", "score": 0.5, "result": []}
        client.create_predictions(other.id, [item])
        before = content(client, project)
        answer = tutorials_line(model, project.id, label_studio.credentials.token)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"processed_items": 3, "detail": "Deleted 3 predictions"}
        assert stored(client, [*predicted, kept])[kept] != []
        assert content(client, project) == []
        (path,) = backups(model)
        assert len(path.read_text(encoding="utf-8").splitlines()) == len(before) == 3
        report = restore(client, path)
        assert (report.restored, report.is_complete) == (3, True)
        assert content(client, project) == before
        assert restore(client, path).present == 3
    finally:
        delete_project(client, other.id)


def test_retrieving_after_deleting(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    model: LiveModel,
    predicted: list[int],
) -> None:
    """After the line, the connected model is still the project's choice, and retrieving fills the tasks again."""
    assert tutorials_line(model, project.id, label_studio.credentials.token).status_code == 200
    retrieve(client, project.id)
    assert [len(ids) for ids in stored(client, predicted).values()] == [1, 1, 1]
    (row,) = client.backends(project.id)
    assert client.project(project.id).model_version == row.title
    assert model.detector.calls == 3


@pytest.mark.parametrize("by", ["view", "query"])
def test_what_narrows_the_line(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    model: LiveModel,
    predicted: list[int],
    by: str,
) -> None:
    """With a tab's number, or a selection, in its address, the line deletes of those tasks only."""
    if by == "view":
        only = {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": predicted[1]}
        data = {"title": "one", "filters": {"conjunction": "and", "items": [only]}}
        view = client.call("POST", "/api/dm/views/", json={"project": project.id, "data": data})
        narrowed = f"&view={view['id']}"
    else:
        narrowed = "&query=" + quote(json.dumps({"selectedItems": {"all": False, "included": [predicted[1]]}}))
    answer = tutorials_line(model, project.id, label_studio.credentials.token, narrowed=narrowed)
    assert answer.json()["detail"] == "Deleted 1 predictions", answer.text
    assert [len(ids) for ids in stored(client, predicted).values()] == [1, 0, 1]


def test_nothing_else(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    model: LiveModel,
    predicted: list[int],
) -> None:
    """Another action is refused with 400 and a wrong token with 401; nothing changes and no file is left."""
    before = stored(client, predicted)
    for action in ("delete_tasks", "retrieve_tasks_predictions", ""):
        answer = tutorials_line(model, project.id, label_studio.credentials.token, action)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    answer = tutorials_line(model, project.id, "f" * 40)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "authentication")
    assert stored(client, predicted) == before
    assert backups(model) == []


def test_unknown_project(label_studio: LabelStudioProcess, model: LiveModel) -> None:
    """A project that does not exist is named in the refusal, and no file is left."""
    answer = tutorials_line(model, 999_999, label_studio.credentials.token)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "there is no project 999999"
    assert backups(model) == []
