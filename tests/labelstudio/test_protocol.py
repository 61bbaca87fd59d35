"""The bodies of Label Studio's requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from spica.errors import MediaError
from spica.labelstudio.config import LabelTag, RectangleControl
from spica.labelstudio.protocol import (
    UNDEFINED_KEY,
    PredictRequest,
    SetupRequest,
    Task,
    WebhookRequest,
    bad_request,
    image_uris,
    project_key,
)
from spica.project import ProjectKey

TASK: dict[str, Any] = {  # the keys of TaskSimpleSerializer of Label Studio 1.23.2
    "id": 7,
    "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
    "meta": {},
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
    "is_labeled": False,
    "overlap": 1,
    "inner_id": 1,
    "total_annotations": 0,
    "cancelled_annotations": 0,
    "total_predictions": 0,
    "comment_count": 0,
    "unresolved_comment_count": 0,
    "last_comment_updated_at": None,
    "project": 1,
    "updated_by": None,
    "file_upload": 3,
    "comment_authors": [],
    "annotations": [],
    "predictions": [],
}
PREDICT: dict[str, Any] = {
    "tasks": [TASK],
    "project": "1.1758811234",
    "label_config": "<View/>",
    "params": {"login": None, "password": None, "context": None},
}
SETUP: dict[str, Any] = {
    "project": "1.1758811234",
    "schema": "<View/>",
    "hostname": "http://localhost:8080",
    "access_token": "c0ffee" * 6,
    "extra_params": None,
}


def without(body: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != key}


def test_predict() -> None:
    """A request as Label Studio sends it is taken, with the further keys of its tasks."""
    request = PredictRequest.model_validate_json(json.dumps(PREDICT))
    (task,) = request.tasks
    assert (task.id, task.data) == (7, TASK["data"])
    assert request.label_config == "<View/>"
    assert request.params.context is None
    assert project_key(request.project) == ProjectKey(1, 1758811234)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(without(PREDICT, "params"), id="no-params"),
        pytest.param({**PREDICT, "params": None}, id="null-params"),
        pytest.param({**PREDICT, "params": {}}, id="empty-params"),
        pytest.param({**PREDICT, "params": {"context": {}}}, id="empty-context"),
        pytest.param(without(PREDICT, "project"), id="no-project"),
        pytest.param({**PREDICT, "project": 1}, id="project-as-number"),
        pytest.param({**PREDICT, "force_reload": False, "try_fetch": True}, id="older-servers-keys"),
        pytest.param({**PREDICT, "tasks": [{"data": {}}]}, id="task-without-id"),
    ],
)
def test_predict_tolerates(body: dict[str, Any]) -> None:
    """What older or other clients leave out or add is no mistake."""
    assert not PredictRequest.model_validate(body).params.context


def test_context_is_kept() -> None:
    """The drawing of an interactive request is handed on as it came."""
    context = {"result": [{"id": "a", "value": {}}]}
    request = PredictRequest.model_validate({**PREDICT, "params": {"context": context, "login": "me"}})
    assert request.params.context == context


@pytest.mark.parametrize("key", ["schema", "label_config"])
def test_setup(key: str) -> None:
    """Label Studio's "schema" and the name of the other routes both carry the configuration."""
    request = SetupRequest.model_validate({**without(SETUP, "schema"), key: "<View/>"})
    assert request.label_config == "<View/>"
    assert request.access_token is not None
    assert request.access_token.get_secret_value() == SETUP["access_token"]
    assert SETUP["access_token"] not in repr(request)


@pytest.mark.parametrize("value", [None, "", '{"score_threshold": 0.4}', {"score_threshold": 0.4}, [1], 3])
def test_setup_takes_any_extra_params(value: Any) -> None:
    """Extra params of any kind do not stop a model from connecting."""
    assert SetupRequest.model_validate({**SETUP, "extra_params": value}).extra_params == value


@pytest.mark.parametrize(
    ("model", "body", "where", "got"),
    [
        pytest.param(PredictRequest, {}, "tasks", "nothing", id="empty"),
        pytest.param(PredictRequest, [], "the whole body", "a list of 0", id="list"),
        pytest.param(PredictRequest, {**PREDICT, "tasks": []}, "tasks", "a list of 0", id="no-tasks"),
        pytest.param(PredictRequest, {**PREDICT, "tasks": {}}, "tasks", "an object with 0 keys", id="tasks-object"),
        pytest.param(PredictRequest, {**PREDICT, "tasks": [TASK, 3]}, "tasks.1", "3", id="second-task"),
        pytest.param(PredictRequest, {**PREDICT, "tasks": [{"id": 1}]}, "tasks.0.data", "nothing", id="no-data"),
        pytest.param(
            PredictRequest, {**PREDICT, "tasks": [{**TASK, "data": None}]}, "tasks.0.data", "null", id="null-data"
        ),
        pytest.param(
            PredictRequest, {**PREDICT, "tasks": [{**TASK, "id": "x"}]}, "tasks.0.id", "a text of 1 characters", id="id"
        ),
        pytest.param(PredictRequest, without(PREDICT, "label_config"), "label_config", "nothing", id="no-config"),
        pytest.param(PredictRequest, {**PREDICT, "label_config": None}, "label_config", "null", id="null-config"),
        pytest.param(PredictRequest, {**PREDICT, "params": [1]}, "params", "a list of 1", id="params-list"),
        pytest.param(SetupRequest, without(SETUP, "schema"), "schema", "nothing", id="no-schema"),
        pytest.param(SetupRequest, {**SETUP, "schema": 1}, "schema", "1", id="schema-number"),
        pytest.param(WebhookRequest, {}, "action", "nothing", id="no-action"),
    ],
)
def test_bad_requests(model: type[BaseModel], body: Any, where: str, got: str) -> None:
    """The first problem of a body is told with its place and with what came instead."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    error = bad_request(caught.value.errors())
    assert error.status == 400
    assert error.where == where
    assert error.got == got
    assert error.expected


def test_bad_requests_repeat_nothing_of_the_body() -> None:
    """Neither a token nor a picture gets into an error message."""
    with pytest.raises(ValidationError) as caught:
        SetupRequest.model_validate(
            {"schema": ["top-secret"], "access_token": ["top-secret"], "project": {"a": "top-secret"}}
        )
    assert "top-secret" not in json.dumps(bad_request(caught.value.errors()).as_json())
    assert "top-secret" not in str(caught.value)
    assert "more" in bad_request(caught.value.errors()).what


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        (None, None),
        ("", None),
        ("1.1758811234", ProjectKey(1, 1758811234)),
        ("42", ProjectKey(42)),
        (42, ProjectKey(42)),
        (0, ProjectKey(0)),
        ("1.2.3", None),
        ("1.99999999999", None),
        ("-1", None),
        ("x.1", None),
        ("１.2", None),
        (".5", None),
        ("9" * 5000, None),
    ],
)
def test_the_project_of_a_request(project: str | int | None, expected: ProjectKey | None) -> None:
    """The number before the dot is the project's, that after it its creation; anything else is none."""
    assert project_key(project) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"action": "START_TRAINING", "project": {"id": 3}}, ProjectKey(3), id="start-training"),
        pytest.param(
            {"action": "ANNOTATION_CREATED", "project": {"id": 4, "created_at": "2025-09-25T14:40:34.9Z"}},
            ProjectKey(4, 1758811234),
            id="created",
        ),
        pytest.param({"action": "ANNOTATIONS_CREATED", "annotation": [], "task": []}, None, id="no-payload"),
        pytest.param({"action": "X", "project": {"id": "4"}}, None, id="id-as-text"),
    ],
)
def test_webhook(body: dict[str, Any], expected: ProjectKey | None) -> None:
    """Any event is taken, with its project, to the second of its creation as `/setup` tells it."""
    request = WebhookRequest.model_validate(body)
    assert request.action == body["action"]
    assert request.project_key == expected


def on(key: str, *, image_list: bool = False) -> RectangleControl:
    labels = (LabelTag("a", "a"),)
    return RectangleControl("label", "image", "rectanglelabels", key, labels, image_list=image_list)


@pytest.mark.parametrize(
    ("data", "key", "expected"),
    [
        pytest.param({"image": "a.jpg"}, "image", "a.jpg", id="plain"),
        pytest.param({"画像": "麦 +%#.jpg"}, "画像", "麦 +%#.jpg", id="japanese"),
        pytest.param({"a.b": "x", "a": {"b": "y"}}, "a.b", "x", id="literal-first"),
        pytest.param({"a": {"b": "y"}}, "a.b", "y", id="nested"),
        pytest.param({"pages": [{"url": "p0"}, {"url": "p1"}]}, "pages[1].url", "p1", id="nested-list"),
        pytest.param({UNDEFINED_KEY: "u.jpg"}, "image", "u.jpg", id="undefined-key"),
        pytest.param({"image": "a.jpg", UNDEFINED_KEY: "u.jpg"}, "image", "a.jpg", id="key-over-undefined"),
    ],
)
def test_image_uri(data: dict[str, Any], key: str, expected: str) -> None:
    """The address stands where the configuration says."""
    assert image_uris(Task(id=1, data=data), on(key)) == (expected,)


@pytest.mark.parametrize(
    ("data", "key", "words"),
    [
        pytest.param({}, "image", ['no image under "image"', "none", "task 1"], id="empty"),
        pytest.param({"photo": "x", "id": 3}, "image", ['"photo", "id"'], id="other-keys"),
        pytest.param({"photo": "x", UNDEFINED_KEY: "u"}, "image", ['"photo"'], id="undefined-beside-others"),
        pytest.param({"image": None}, "image", ["no image"], id="null"),
        pytest.param({"image": 3}, "image", ["not the address", "3"], id="number"),
        pytest.param({"image": "  "}, "image", ["not the address"], id="blank"),
        pytest.param({"image": ["a", "b"]}, "image", ["a list of 2", "valueList"], id="list"),
        pytest.param({"image": {"url": "x"}}, "image", ["an object with 1 keys"], id="object"),
        pytest.param({"pages": []}, "pages[0].url", ["no image"], id="beyond-the-list"),
        pytest.param({"pages": "abc"}, "pages[0]", ["no image"], id="path-into-text"),
    ],
)
def test_image_uri_tells_what_is_missing(data: dict[str, Any], key: str, words: list[str]) -> None:
    """A task without a usable address is refused with its number and with what it has."""
    with pytest.raises(MediaError) as caught:
        image_uris(Task(id=1, data=data), on(key))
    for word in words:
        assert word in str(caught.value)


def test_image_lists() -> None:
    """With valueList all addresses come in order."""
    task = Task(id=None, data={"pages": ["a.jpg", "b.jpg"], "one": ["c.jpg"], "plain": "d.jpg", "bad": ["a", 3]})
    assert image_uris(task, on("pages", image_list=True)) == ("a.jpg", "b.jpg")
    assert image_uris(task, on("one", image_list=True)) == ("c.jpg",)
    assert image_uris(task, on("plain", image_list=True)) == ("d.jpg",)
    with pytest.raises(MediaError, match="not the address"):
        image_uris(task, on("bad", image_list=True))
