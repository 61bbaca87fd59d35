"""What people are shown while predictions of several versions are stored, and what becomes of what they had open."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import expect
from typer.testing import CliRunner

from browser_pages import TIMEOUT_MS, LabelStudioPages
from label_studio_helpers import create_annotation, import_tasks
from learning_lab import open_lab, until
from learning_lane import ANNOTATED, RECIPE, UNLABELLED, render
from live_model import BrightnessDetector, Folder, LiveModel, ServeModel, prelabel
from spica.cli import app
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Json, Project
from spica.training.runs import Runs

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]


def region(left: float, number: int, score: float) -> Json:
    """A box at so many percent from the left."""
    value = {"x": left, "y": 10, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["spike"]}
    size = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    tag = {"id": f"r{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {**tag, **size, "value": value, "score": score}


def store(client: LabelStudioClient, project: int, tasks: Sequence[int], version: str, scores: Sequence[float]) -> None:
    """A prediction of a version for each task, of one box with this score."""
    items = [
        {"task": task, "model_version": version, "score": score, "result": [region(10, 0, score)]}
        for task, score in zip(tasks, scores, strict=True)
    ]
    assert client.create_predictions(project, items) == len(tasks)


def test_the_new_version_is_what_is_shown(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    folder: Folder,
    serve_model: ServeModel,
) -> None:
    """With three versions stored, quick view, label stream, score column, the order by it and the order by uncertainty
    are those of the version that the connected model answers; before a task has its prediction, the latest is shown.
    """
    project = smart_project.id
    model = serve_model(label_studio, BrightnessDetector())
    folder.photograph("a.png", (250, 250, 250))
    folder.photograph("b.png", (180, 180, 180))
    folder.photograph("c.png", (200, 200, 200))
    tasks = import_tasks(client, project, [{"data": {"image": folder.address(f"{n}.png")}} for n in "abc"])
    store(client, project, tasks, "first", (0.61, 0.62, 0.63))
    store(client, project, tasks, "second", (0.64, 0.65, 0.66))
    client.connect_backend(project, url=model.url)
    client.update_project(project, sampling="Uncertainty sampling")
    pages = open_label_studio()
    pages.open_data_manager(project)
    pages.open_task(0)
    expect(pages.regions).to_have_count(1, timeout=TIMEOUT_MS)
    expect(pages.scores).to_have_text(["0.64"])

    prelabel(client, model.predictor, project)
    pages.open_data_manager(project)
    pages.open_task(0)
    expect(pages.scores).to_have_text(["0.98"], timeout=TIMEOUT_MS)
    pages.open_scores(client, project)
    expect(pages.rows).to_have_text([re.compile(r"0\.706"), re.compile(r"0\.784"), re.compile(r"0\.980")])
    assert pages.label_next_task() == tasks[1]
    expect(pages.scores).to_have_text(["0.71"], timeout=TIMEOUT_MS)


@pytest.mark.parametrize("deletes", ["refresh", "delete"])
def test_a_task_that_is_open_can_be_submitted(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    folder: Folder,
    model: LiveModel,
    deletes: str,
) -> None:
    """After `spica predictions refresh` or `delete`, a task that was open with an older version's boxes is submitted,
    and the annotation names them; what is opened afterwards shows the new version.
    """
    project = smart_project.id
    task, other = folder.tasks(client, project, ["a.png", "b.png"])
    store(client, project, [task, other], "older", (0.5, 0.5))
    client.update_project(project, model_version="older")
    pages = open_label_studio()
    pages.open_data_manager(project)
    pages.open_task(0)
    expect(pages.regions).to_have_count(1, timeout=TIMEOUT_MS)
    (older,) = client.predictions_of_task(task)

    if deletes == "refresh":
        client.connect_backend(project, url=model.url)
        line = ["--model-url", model.url, "--backup", str(folder.path / "backup.jsonl")]
    else:
        line = ["--version", "older", "--backup", str(folder.path / "backup.jsonl")]
    env = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.credentials.token}
    result = CliRunner().invoke(app, ["predictions", deletes, "--project", str(project), *line], env=env)
    assert result.exit_code == 0, result.output

    pages.submit()
    assert "Spared 2" in result.output
    (annotation,) = client.call("GET", f"/api/tasks/{task}/annotations/")
    assert (annotation["parent_prediction"], len(annotation["result"])) == (older.id, 1)
    pages.open_task_of(project, other)
    expect(pages.regions).to_have_count(2 if deletes == "refresh" else 1, timeout=TIMEOUT_MS)


@pytest.mark.torch
@pytest.mark.slow
def test_a_task_that_is_open_while_a_training_passes_can_be_submitted(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version that was trained and passed is rolled out while a task is open with the older one's box: the submit is
    stored and names that box's prediction, and the next task, in a page loaded anew, shows the new version.
    """
    project = smart_project.id
    names = [f"{number}.png" for number in range(UNLABELLED + ANNOTATED)]
    tasks = folder.tasks(client, project, names)
    truth = [render(folder.path / name, seed) for seed, name in enumerate(names)]
    for task, regions in list(zip(tasks, truth, strict=True))[UNLABELLED:]:
        create_annotation(client, task, regions, lead_time=1)
    with open_lab(label_studio, tmp_path / "spica", monkeypatch, RECIPE, holdout_min=4) as lab:
        row = client.connect_backend(project, url=lab.server.url)
        store(client, project, tasks[:UNLABELLED], row.model_version, [0.5] * UNLABELLED)
        pages = open_label_studio()
        pages.open_data_manager(project)
        pages.open_task(0)
        expect(pages.scores).to_have_text(["0.50"], timeout=TIMEOUT_MS)
        (older,) = client.predictions_of_task(tasks[0])
        client.call("POST", f"/api/ml/{row.id}/train")
        (run,) = until(lambda: lab.learning()["runs"], "the training did not end")
        assert run["state"] == "passed", run
        runs, key = Runs(lab.data_dir), client.project(project).key
        until(lambda: runs.of(key)[0].settled, "the version was not rolled out")
        assert client.predictions_of_task(tasks[0])[-1].model_version.startswith(run["version"])

        pages.submit()
        (annotation,) = client.call("GET", f"/api/tasks/{tasks[0]}/annotations/")
        assert (annotation["parent_prediction"], len(annotation["result"])) == (older.id, 1)
        pages.open_data_manager(project)  # a page keeps the version that it was loaded with
        pages.open_task(1)
        newer = client.predictions_of_task(tasks[1])[-1]
        assert newer.result
        expect(pages.scores).to_have_text([f"{region['score']:.2f}" for region in newer.result], timeout=TIMEOUT_MS)
