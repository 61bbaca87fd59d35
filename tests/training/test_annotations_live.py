"""Submitted annotations of a real Label Studio as a data set, and how many of them are new."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from annotated_images import photograph
from label_studio_helpers import (
    LABEL_CONFIG,
    create_annotation,
    delete_project,
    import_tasks,
    update_annotation,
    upload_images,
)
from spica.errors import DataSetError, LabelStudioUnreachableError, MediaError, TrainingError
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.media import MediaReader
from spica.labelstudio.records import Project
from spica.training.submissions import NewSubmissions, count_new, fetch, learned

pytestmark = pytest.mark.label_studio


class Media:
    """Reads images as the model server does, and remembers what it was asked."""

    def __init__(self, reader: MediaReader) -> None:
        self._reader = reader
        self.read_uris: list[str] = []

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        self.read_uris.append(uri)
        return self._reader.read(uri, task_id=task_id)


@pytest.fixture
def media(label_studio: LabelStudioProcess) -> Iterator[Media]:
    """Images of the real Label Studio, over HTTP."""
    auth = LabelStudioAuth(label_studio.url, label_studio.credentials.token)
    with MediaReader(
        label_studio_url=label_studio.url,
        auth=auth,
        document_root=None,
        media_dir=None,
        max_bytes=10**7,
        timeout_s=60,
    ) as reader:
        yield Media(reader)


def region(x: float, y: float, width: float, height: float, label: str = "spike", **more: Any) -> dict[str, Any]:
    """A drawn rectangle, in percent."""
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": f"{x}-{y}-{label}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 64,
        "original_height": 48,
        "image_rotation": 0,
        "value": {**value, **more.pop("value", {})},
        **more,
    }


def other_user(client: LabelStudioClient, name: str) -> int:
    """A second annotator of the same organisation."""
    body = client.call("POST", "/api/users/", json={"email": name, "username": name, "password": "a long password"})
    return int(body["id"])


def boxes(dataset: Any, task: int) -> list[list[float]]:
    """Class id and box of a task's only example."""
    (example,) = [each for each in dataset.examples if each.task == task]
    return [
        [int(class_id), *(round(side, 3) for side in box)]
        for box, class_id in zip(example.truth.boxes_xyxy.tolist(), example.truth.class_ids, strict=True)
    ]


def test_what_people_submitted(client: LabelStudioClient, project: Project, media: Media, tmp_path: Path) -> None:
    """Submitted annotations count, one a task, with upright boxes; skipped tasks, drafts and old labels don't."""
    images = {f"img{number:03}.jpg": photograph(number) for number in range(10)}
    images["img900.jpg"] = photograph(50, (64, 48), orientation=6)  # upright it is 48 x 64
    tasks = upload_images(client, project.id, images)
    plain, empty, skipped, drafted, true, two, dropped, partly, turned, untouched, rotated = tasks
    create_annotation(client, plain, [region(25, 50, 50, 25), region(0, 0, 10, 10, "other")])
    create_annotation(client, empty, [])
    create_annotation(client, skipped, [region(1, 1, 9, 9)], was_cancelled=True)
    client.call("POST", f"/api/tasks/{drafted}/drafts", json={"result": [region(1, 1, 9, 9)], "lead_time": 1})
    create_annotation(client, true, [region(10, 10, 20, 20)], ground_truth=True)
    create_annotation(client, true, [region(50, 50, 20, 20)], completed_by=other_user(client, "two@local.host"))
    first = create_annotation(client, two, [region(10, 10, 20, 20)])
    create_annotation(client, two, [region(50, 50, 20, 20)], completed_by=other_user(client, "three@local.host"))
    update_annotation(client, first, result=[region(30, 30, 20, 20)])  # changed last, and so it counts
    gone = create_annotation(client, dropped, [region(10, 10, 20, 20, "gone")])
    half = create_annotation(client, partly, [region(10, 10, 20, 20, "gone"), region(50, 50, 25, 25)])
    create_annotation(client, turned, [region(50, 0, 25, 50, value={"rotation": 90})])
    create_annotation(client, rotated, [region(50, 25, 50, 75, original_width=48, original_height=64)])
    with pytest.raises(DataSetError, match="2 of 8 images would be left out"):
        fetch(client, media, project.id, tmp_path / "images")
    dataset = fetch(client, media, project.id, tmp_path / "images", allow_partial=True)

    assert dataset.classes == ("spike", "other")
    assert [each.task for each in dataset.examples] == [plain, empty, true, two, turned, rotated]
    assert boxes(dataset, plain) == [[0, 16, 24, 48, 36], [1, 0, 0, 6.4, 4.8]]
    assert boxes(dataset, empty) == []
    assert boxes(dataset, true) == [[0, 6.4, 4.8, 19.2, 14.4]]
    assert boxes(dataset, two) == [[0, 19.2, 14.4, 32, 24]]
    np.testing.assert_allclose(boxes(dataset, turned), [[0, 8, 0, 32, 16]], atol=1e-4)  # about its left upper corner
    assert boxes(dataset, rotated) == [[0, 24, 16, 48, 64]]
    (upright,) = [each for each in dataset.examples if each.task == rotated]
    assert (upright.truth.width, upright.truth.height, upright.name) == (48, 64, "img900.jpg")
    (told,) = dataset.problems
    assert told.startswith('2 images left out: a box of class "gone", which is not known')
    assert {gone, half} == set(dict(dataset.left_out))
    assert untouched not in [each.task for each in dataset.examples]

    asked = len(media.read_uris)
    again = fetch(client, media, project.id, tmp_path / "images", allow_partial=True)
    assert len(media.read_uris) == asked, "a second reading reads no image again"
    assert again.fingerprint == dataset.fingerprint
    assert count_new(client, project.id, learned(dataset)) == NewSubmissions(0, 0)


def test_counting(client: LabelStudioClient, project: Project, media: Media, tmp_path: Path) -> None:
    """New and changed annotations are counted, by whatever way they came; skipped and deleted ones are not."""
    assert count_new(client, project.id, {}) == NewSubmissions(0, 0)
    tasks = upload_images(client, project.id, {f"img{number:03}.jpg": photograph(number) for number in range(8)})
    made = [create_annotation(client, task, [region(10, 10, 20, 20)]) for task in tasks[:3]]
    assert count_new(client, project.id, {}) == NewSubmissions(3, 0)
    known = learned(fetch(client, media, project.id, tmp_path))
    assert sorted(known) == made
    create_annotation(client, tasks[3], [region(10, 10, 20, 20)])
    create_annotation(client, tasks[4], [], was_cancelled=True)
    assert count_new(client, project.id, known) == NewSubmissions(1, 0)
    update_annotation(client, made[0], result=[])
    assert count_new(client, project.id, known) == NewSubmissions(1, 1)
    items = [{"task": tasks[5], "result": [region(1, 1, 30, 30)], "score": 0.5, "model_version": "v1"}]
    assert client.create_predictions(project.id, items) == 1
    client.call(
        "POST",
        "/api/dm/actions/",
        params={"id": "predictions_to_annotations", "project": project.id},
        json={"selectedItems": {"all": False, "included": [tasks[5]]}, "model_version": "v1"},
    )
    assert count_new(client, project.id, known) == NewSubmissions(2, 1), "annotations that an action made count too"
    client.call("DELETE", f"/api/annotations/{made[1]}/")
    assert count_new(client, project.id, known) == NewSubmissions(2, 1)
    # Far ahead of the known ones nothing but the numbers tells what is new.
    ahead = dict.fromkeys(known, "2999-01-01T00:00:00.000000Z")
    assert count_new(client, project.id, ahead).new == 2


def test_images_that_are_gone(client: LabelStudioClient, project: Project, media: Media, tmp_path: Path) -> None:
    """An image that is gone, or is none, leaves its task out with a sentence, and does not count as new for ever."""
    (good,) = upload_images(client, project.id, {"img001.jpg": photograph(1)})
    others = import_tasks(
        client,
        project.id,
        [
            {"data": {"image": "/data/upload/999/00000000-gone.jpg"}},
            {"data": {"image": "data:text/plain;base64,bm8gaW1hZ2U="}},
            {"data": {"image": "../../etc/passwd"}},
        ],
    )
    for task in (good, *others):
        create_annotation(client, task, [region(10, 10, 20, 20)])
    told: list[tuple[int, int]] = []
    dataset = fetch(
        client,
        media,
        project.id,
        tmp_path,
        progress=lambda done, total: told.append((done, total)),
        allow_partial=True,
    )
    assert [each.task for each in dataset.examples] == [good]
    assert told[-1] == (4, 4)
    assert len(dataset.problems) == 2
    assert count_new(client, project.id, learned(dataset)) == NewSubmissions(0, 0)


def test_nothing_to_learn_from(client: LabelStudioClient, project: Project, media: Media, tmp_path: Path) -> None:
    """A project without submitted annotations is refused with a sentence, and a stopped reading says so."""
    with pytest.raises(DataSetError, match="no annotated image"):
        fetch(client, media, project.id, tmp_path)
    (task,) = upload_images(client, project.id, {"img001.jpg": photograph(1)})
    create_annotation(client, task, [])
    stop = threading.Event()
    stop.set()
    with pytest.raises(TrainingError, match="stopped"):
        fetch(client, media, project.id, tmp_path, stop=stop)


def test_several_images_and_rectangles_with_labels(client: LabelStudioClient, media: Media, tmp_path: Path) -> None:
    """Every image of a list is an example, Rectangle with Labels is read, and category numbers order the classes."""
    config = """<View><Image name="pages" valueList="$pages"/>
      <Rectangle name="box" toName="pages"/>
      <Labels name="kind" toName="pages">
        <Label value="spike" category="1"/><Label value="weed" category="0"/><Label value="late"/>
      </Labels></View>"""
    project = client.create_project("several images", config)
    holder = client.create_project("several images, files", LABEL_CONFIG)
    try:
        files = {f"img{number:03}.jpg": photograph(number) for number in range(3)}
        uploads = [row for row in upload_images(client, holder.id, files) if row]
        by_id = {row.id: row.data["image"] for row in client.iter_tasks(holder.id)}
        (task,) = import_tasks(client, project.id, [{"data": {"pages": [by_id[upload] for upload in uploads]}}])
        value = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0}
        common = {"id": "r1", "to_name": "pages", "original_width": 64, "original_height": 48, "item_index": 1}
        create_annotation(
            client,
            task,
            [
                {**common, "from_name": "box", "type": "rectangle", "value": value},
                {**common, "from_name": "kind", "type": "labels", "value": {**value, "labels": ["spike"]}},
            ],
        )
        dataset = fetch(client, media, project.id, tmp_path)
    finally:
        delete_project(client, project.id)
        delete_project(client, holder.id)
    assert dataset.classes == ("weed", "spike", "late")
    assert [each.name for each in dataset.examples] == list(files)
    assert [each.truth.class_ids.tolist() for each in dataset.examples] == [[], [1], []]
    assert dataset.examples[1].truth.boxes_xyxy.tolist() == [[16, 24, 48, 36]]
    assert len({each.annotation for each in dataset.examples}) == 1


def test_label_studio_that_gives_no_answer(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, tmp_path: Path
) -> None:
    """Where it is Label Studio that is away, nothing is left out: the reading fails."""
    (task,) = upload_images(client, project.id, {"img001.jpg": photograph(1)})
    create_annotation(client, task, [])
    away = False

    class Network(httpx.BaseTransport):
        def __init__(self) -> None:
            self._inner = httpx.HTTPTransport()

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if away:
                raise httpx.ConnectError("away", request=request)
            return self._inner.handle_request(request)

        def close(self) -> None:
            self._inner.close()

    class Away:
        def read(self, uri: str, *, task_id: int | None = None) -> bytes:
            nonlocal away
            away = True
            raise MediaError("no answer", where=uri)

    token = label_studio.credentials.token
    with (
        LabelStudioClient(label_studio.url, token, transport=Network()) as connection,
        pytest.raises(LabelStudioUnreachableError),
    ):
        fetch(connection, Away(), project.id, tmp_path)
