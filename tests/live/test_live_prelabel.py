"""The bulk job against a real Label Studio, which may stop in the middle; and what becomes of its predictions."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from label_studio_helpers import delete_project
from live_model import ANSWER, SIZE, TIMEOUT_S, Folder, LiveModel, ServeModel, prelabel, shade, stored
from scripted_detector import WAIT_S, ScriptedDetector
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.errors import LabelStudioUnreachableError, MediaError
from spica.inference import Priority
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.protocol import Task
from spica.labelstudio.records import Project
from spica.prelabel.progress import Progress

pytestmark = pytest.mark.label_studio

FIRST = 16
"""Images after which the detector stops: a batch of the job's."""

RECTANGLE_LABELS = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/><Label value="other"/></RectangleLabels></View>'
)
RECTANGLE_AND_LABELS = (
    '<View><Image name="image" value="$image"/><Rectangle name="box" toName="image"/>'
    '<Labels name="label" toName="image"><Label value="spike"/><Label value="other"/></Labels></View>'
)


def export(label_studio: LabelStudioProcess, project: int, kind: str) -> Any:
    """An export of all annotated tasks, as parsed JSON."""
    answer = httpx.get(
        f"{label_studio.url}/api/projects/{project}/export",
        params={"exportType": kind},
        headers={"Authorization": f"Token {label_studio.credentials.token}"},
        trust_env=False,
        timeout=TIMEOUT_S,
    )
    content = answer.raise_for_status().content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read("result.json")
    return json.loads(content)


def test_twice_changes_nothing(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> None:
    """The first run stores a prediction for every task, the second finds nothing to do and leaves them as they are."""
    tasks = folder.tasks(client, project.id, [f"{number}.png" for number in range(3)])
    first = prelabel(client, model.predictor, project.id)
    assert (first.total, first.stored, first.boxes, first.failures) == (3, 3, 6, [])
    ids = stored(client, tasks)
    assert [len(each) for each in ids.values()] == [1, 1, 1]
    assert prelabel(client, model.predictor, project.id).total == 0
    assert stored(client, tasks) == ids


def test_as_the_open_image_would_be(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel
) -> None:
    """The job stores the very regions, score and version that Label Studio gets when it asks itself."""
    asked, bulk = folder.tasks(client, project.id, ["a.png", "b.png"])
    row = client.connect_backend(project.id, url=model.url)
    client.call("GET", f"/api/tasks/{asked}/", timeout_s=TIMEOUT_S)
    done = prelabel(client, model.predictor, project.id)
    assert (done.total, done.stored) == (1, 1)
    (one,), (other,) = (client.predictions_of_task(task) for task in (asked, bulk))
    assert (one.result, one.score) == (other.result, other.score)
    assert one.model_version == other.model_version == row.model_version


def test_broken_image(client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel) -> None:
    """A broken image is told with its task and reason, has no prediction, and is all that the next run does."""
    good, broken = folder.tasks(client, project.id, ["a.png", "b.png"])
    (folder.path / "b.png").write_bytes(b"")
    done = prelabel(client, model.predictor, project.id)
    ((task, error),) = done.failures
    assert (done.stored, task, error.code) == (1, broken, "image")
    assert {task: len(ids) for task, ids in stored(client, [good, broken]).items()} == {good: 1, broken: 0}
    folder.photograph("b.png", shade(1))
    assert prelabel(client, model.predictor, project.id).total == 1
    assert {task: len(ids) for task, ids in stored(client, [good, broken]).items()} == {good: 1, broken: 1}


@pytest.mark.parametrize(
    "config", [RECTANGLE_LABELS, RECTANGLE_AND_LABELS], ids=["RectangleLabels", "Rectangle+Labels"]
)
def test_exports(
    client: LabelStudioClient,
    folder: Folder,
    label_studio: LabelStudioProcess,
    model: LiveModel,
    config: str,
) -> None:
    """Annotations made of the job's predictions are exported with every box, label and size, as JSON and as COCO."""
    project = client.create_project("exported", config)
    try:
        (task,) = folder.tasks(client, project.id, ["a.png"])
        spec = model.spec(client, project.id)
        assert prelabel(client, model.predictor, project.id).stored == 1
        params: dict[str, str | int] = {"id": "predictions_to_annotations", "project": project.id}
        body = {"selectedItems": {"all": True, "excluded": []}, "model_version": spec.version}
        client.call("POST", "/api/dm/actions/", params=params, json=body)

        (exported,) = export(label_studio, project.id, "JSON")
        assert exported["id"] == task
        (annotation,) = exported["annotations"]
        regions = [item for item in annotation["result"] if item["type"] != "rectangle"]
        assert len(regions) == 2
        assert {(item["original_width"], item["original_height"]) for item in annotation["result"]} == {SIZE}

        coco = export(label_studio, project.id, "COCO")
        names = {category["id"]: category["name"] for category in coco["categories"]}
        found = sorted((names[item["category_id"]], item["bbox"]) for item in coco["annotations"])
        assert found == [
            ("spike", pytest.approx([10, 10, 40, 20])),
            ("spike", pytest.approx([100, 40, 40, 50])),
        ]
        (image,) = coco["images"]
        assert (image["width"], image["height"]) == SIZE
    finally:
        delete_project(client, project.id)


class GatedDetector(ScriptedDetector):
    """Stops before the image after the first :data:`FIRST`, until it may go on."""

    def __init__(self) -> None:
        super().__init__(ANSWER)
        self.go_on = threading.Event()

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The scripted answer."""
        if self.calls >= FIRST:
            assert self.go_on.wait(WAIT_S)
        return super().detect(images)


def test_label_studio_stops_in_the_middle(
    label_studio_factory: Callable[..., LabelStudioProcess], serve_model: ServeModel
) -> None:
    """When Label Studio stops, the job says so and what it stored stays; run again it completes without doubles."""
    detector = GatedDetector()
    confirmed = 0
    with label_studio_factory() as process:
        root, data_dir = process.document_root, process.data_dir
        photographs = Folder(root / "images", root)
        names = [f"{number:02}.png" for number in range(FIRST + 3)]

        def stop_after_the_first_batch(progress: Progress) -> None:
            nonlocal confirmed
            if progress.stored:
                confirmed = progress.stored
                process.close()
                detector.go_on.set()

        with process.client() as client:
            project = client.create_project("stopped in the middle", RECTANGLE_LABELS)
            tasks = photographs.tasks(client, project.id, names)
            model = serve_model(process, detector)
            spec = model.spec(client, project.id)
            with pytest.raises(LabelStudioUnreachableError) as caught:
                prelabel(
                    client,
                    model.predictor,
                    project.id,
                    on_progress=stop_after_the_first_batch,
                    patience_s=0,
                )
        assert process.url in str(caught.value)
        assert 0 < confirmed < len(tasks)
    remote = serve_model(process, over_http=True)
    last = Task(id=tasks[-1], data={"image": photographs.address(names[-1])})
    (outcome,) = remote.predictor.predict([last], spec, Priority.BULK)
    assert outcome.task_id == tasks[-1]
    assert isinstance(outcome.error, MediaError)
    assert "no connection" in str(outcome.error)
    with (
        LabelStudioProcess.start(data_dir, port=0, document_root=root) as again,
        again.client() as client,
    ):
        kept = {task: ids for task, ids in stored(client, tasks).items() if ids}
        assert len(kept) == confirmed
        done = prelabel(client, model.predictor, project.id)
        assert (done.total, done.stored) == (len(tasks) - confirmed, len(tasks) - confirmed)
        complete = stored(client, tasks)
        assert [len(ids) for ids in complete.values()] == [1] * len(tasks)
        assert {task: complete[task] for task in kept} == kept
        assert prelabel(client, model.predictor, project.id).total == 0
        assert stored(client, tasks) == complete
