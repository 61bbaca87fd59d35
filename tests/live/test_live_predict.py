"""Predictions asked for by a real Label Studio: opening tasks, Retrieve Predictions, drawing."""

from __future__ import annotations

from typing import Any

import pytest

from label_studio_helpers import LABEL_CONFIG, import_tasks
from live_model import (
    TIMEOUT_S,
    BrightnessDetector,
    Folder,
    LiveModel,
    ServeModel,
    open_task,
    photograph,
    retrieve,
    shade,
    stored,
)
from spica.boxes import Detections
from spica.connect import connect
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Json, Project

pytestmark = pytest.mark.label_studio


def next_task(client: LabelStudioClient, project: Project) -> Json:
    """What the browser asks for in the label stream."""
    body: Json = client.call("GET", f"/api/projects/{project.id}/next", timeout_s=TIMEOUT_S)
    return body


def scores(client: LabelStudioClient, project: Project, ordering: str) -> list[float | None]:
    """The Data Manager's column Prediction score, in the order asked for."""
    params: dict[str, str | int] = {
        "project": project.id,
        "fields": "all",
        "query": f'{{"ordering": ["{ordering}"]}}',
    }
    return [row["predictions_score"] for row in client.call("GET", "/api/tasks/", params=params)["tasks"]]


# Opening one task


def test_opening_stores_one_prediction(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """A task opened in the Data Manager or the label stream has one prediction of our version, however often it is."""
    tasks = folder.tasks(client, project.id, ["a.png", "b.png"])
    version = connect(client, project.id, model_url=model.url).version
    streamed = next_task(client, project)
    assert streamed["id"] == tasks[0]
    assert [len(each["result"]) for each in streamed["predictions"]] == [2]
    opened = open_task(client, tasks[1])
    assert [each["model_version"] for each in opened["predictions"]] == [version]
    ids = stored(client, tasks)
    assert [len(each) for each in ids.values()] == [1, 1]
    open_task(client, tasks[0])
    open_task(client, tasks[1])
    next_task(client, project)
    retrieve(client, project.id)
    assert stored(client, tasks) == ids
    assert model.detector.calls == 2


def test_regions_survive_storage(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> None:
    """What Label Studio stores is what the model saw, in percent of the image, with the sizes that exports need."""
    (task,) = folder.tasks(client, project.id, ["a.png"])
    connect(client, project.id, model_url=model.url)
    open_task(client, task)
    (prediction,) = client.predictions_of_task(task)
    first, second = prediction.result
    value = {"x": 5.0, "y": 10.0, "width": 20.0, "height": 20.0, "rotation": 0, "rectanglelabels": ["spike"]}
    assert first["value"] == value
    assert (first["original_width"], first["original_height"], first["image_rotation"]) == (200, 100, 0)
    assert [first["score"], second["score"]] == [0.9, 0.7]
    assert prediction.score == pytest.approx(0.8)
    assert first["id"] != second["id"]


def test_scores_and_uncertainty_order(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
) -> None:
    """After ``connect`` every task shows a score, tasks are ordered by it, and the least certain one comes first."""
    model = serve_model(label_studio, BrightnessDetector())
    client.update_project(project.id, sampling="Uncertainty sampling")
    colours = {"a.png": 200, "b.png": 160, "c.png": 250}
    addresses = [folder.photograph(name, (level, level, level)) for name, level in colours.items()]
    tasks = import_tasks(client, project.id, [{"data": {"image": address}} for address in addresses])
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    expected = [pytest.approx(level / 255, abs=1e-3) for level in sorted(colours.values())]
    assert scores(client, project, "tasks:predictions_score") == expected
    assert scores(client, project, "-tasks:predictions_score") == expected[::-1]
    assert next_task(client, project)["id"] == tasks[1]


def test_a_failing_task_opens_all_the_same(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """A task whose image can't be read opens without boxes, nothing is stored for it, and the page tells why."""
    (task,) = import_tasks(client, project.id, [{"data": {"image": folder.address("none.png")}}])
    connect(client, project.id, model_url=model.url)
    assert open_task(client, task)["predictions"] == []
    assert next_task(client, project)["predictions"] == []
    assert stored(client, [task]) == {task: []}
    assert f'data?task={task}"' in model.page()
    assert "no such file" in model.page()
    folder.photograph("none.png")
    assert len(open_task(client, task)["predictions"]) == 1


# Retrieve Predictions


def test_retrieve_with_a_broken_image(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """One broken image of twelve costs only its own prediction, and once mended it is all that is added."""
    names = [f"{number:02}.png" for number in range(12)]
    tasks = folder.tasks(client, project.id, names)
    broken = tasks[7]
    (folder.path / names[7]).write_bytes(photograph(shade(7))[:60])
    version = connect(client, project.id, model_url=model.url).version
    assert retrieve(client, project.id, tasks)["processed_items"] == 12
    before = stored(client, tasks)
    assert {task: len(ids) for task, ids in before.items()} == {task: int(task != broken) for task in tasks}
    assert client.prediction_versions(project.id) == {version: 11}
    assert [failure.task for failure in model.service.failures] == [broken]
    assert f'data?task={broken}"' in model.page()
    assert "an image is damaged" in model.page()
    (folder.path / names[7]).write_bytes(photograph(shade(7)))
    retrieve(client, project.id)
    after = stored(client, tasks)
    assert len(after.pop(broken)) == 1
    assert after == {task: ids for task, ids in before.items() if task != broken}
    (mended,) = client.predictions_of_task(broken)
    assert len(mended.result) == 2


def test_retrieve_where_all_fail(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> None:
    """When every image is missing, nothing is stored at all."""
    missing = [{"data": {"image": folder.address(f"{number}.png")}} for number in range(3)]
    tasks = import_tasks(client, project.id, missing)
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    assert stored(client, tasks) == {task: [] for task in tasks}


def test_no_objects_are_stored_once(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """An image without objects has a prediction without boxes and with a score, and is not asked for again."""
    model.detector.answer = Detections.empty()
    (task,) = folder.tasks(client, project.id, ["a.png"])
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    retrieve(client, project.id)
    (prediction,) = client.predictions_of_task(task)
    assert (prediction.result, prediction.score) == ([], 1.0)


def test_images_that_do_not_exist(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """An empty list stores nothing; of a list with a null the others have their boxes, at their own places."""
    config = LABEL_CONFIG.replace('value="$image"', 'valueList="$pages"')
    client.update_project(project.id, label_config=config)
    page = folder.photograph("a.png")
    other = folder.photograph("b.png", shade(9))
    lists: list[list[str | None]] = [[], [page, None, other], [page]]
    tasks = import_tasks(client, project.id, [{"data": {"pages": each}} for each in lists])
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    found = [
        [item.get("item_index") for each in client.predictions_of_task(task) for item in each.result] for task in tasks
    ]
    assert found == [[], [0, 0, 2, 2], [0, 0]]
    assert [len(ids) for ids in stored(client, tasks).values()] == [0, 1, 1]
    assert open_task(client, tasks[1])["predictions"]


# Drawing


def drawn(**value: Any) -> dict[str, Any]:
    """A rectangle drawn with the magic wand, as Chromium sends it."""
    return {
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": {"rotation": 0, "rectanglelabels": ["spike"], **value},
        "id": "roWOjZ1H7t",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
    }


def annotate(client: LabelStudioClient, backend: int, task: int, result: list[dict[str, Any]]) -> Json:
    """What the browser sends when a rectangle is finished: all regions of the open annotation, the drawn one last."""
    body = {"task": task, "context": {"result": result}}
    path = f"/api/ml/{backend}/interactive-annotating"
    answer: Json = client.call("POST", path, json=body, timeout_s=TIMEOUT_S)
    return answer


def test_drawing(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> None:
    """A drawn rectangle is answered with the detections in it, those below the threshold too; nothing is stored."""
    (task,) = folder.tasks(client, project.id, ["a.png"])
    connect(client, project.id, model_url=model.url)
    present = open_task(client, task)["predictions"][0]["result"]
    (backend,) = client.backends(project.id)
    around_the_faint_one = drawn(x=28, y=55, width=14, height=30)
    answer = annotate(client, backend.id, task, [*present, around_the_faint_one])
    (suggestion,) = answer["data"]["result"]
    assert suggestion["score"] == pytest.approx(0.3)
    assert suggestion["value"] == {
        "x": 30.0,
        "y": 60.0,
        "width": 10.0,
        "height": 20.0,
        "rotation": 0,
        "rectanglelabels": ["spike"],
    }
    assert model.detector.calls == 1
    assert len(client.predictions_of_task(task)) == 1
    assert annotate(client, backend.id, task, [drawn(x=80, y=5, width=5, height=5)])["data"]["result"] == []


def test_drawing_on_a_missing_image(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """When the image can't be read, Label Studio answers 200 with errors, and the page tells why."""
    (task,) = import_tasks(client, project.id, [{"data": {"image": folder.address("none.png")}}])
    backend = client.connect_backend(project.id, url=model.url)
    answer = annotate(client, backend.id, task, [drawn(x=1, y=1, width=10, height=10)])
    assert "data" not in answer
    assert "422" in answer["errors"][0]
    assert "no such file" in model.page()
