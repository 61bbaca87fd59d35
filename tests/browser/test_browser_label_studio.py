"""A person in Chromium labels with a real Label Studio and a real model server."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from browser_pages import TIMEOUT_MS, LabelStudioPages
from label_studio_helpers import import_tasks
from live_model import Folder, LiveModel, ServeModel
from scripted_detector import WAIT_S, ScriptedDetector, detections
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Json, Project

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

SIZE = (800, 500)
"""Width and height of the photographs, in pixels."""

ANSWER = detections((100, 100, 250, 200, 0.9), (400, 200, 560, 350, 0.7), (300, 300, 380, 380, 0.3))
"""Two boxes above the threshold of 0.6, and one below."""

SHOWN_PERCENT = [(12.5, 20, 18.75, 20), (50, 40, 20, 30)]
"""The two as Label Studio keeps them: left, top, width, height."""

WEAK_PERCENT = (37.5, 60, 10, 16)


class BlobDetector(ScriptedDetector):
    """One box around what is bright in a dark image."""

    def __init__(self) -> None:
        super().__init__(Detections.empty())

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The box around all pixels brighter than the middle."""
        super().detect(images)
        answers = []
        for image in images:
            ys, xs = np.nonzero(image[..., 0] > 128)
            answers.append(detections((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, 0.95)))
        return answers


def field_photograph(size: tuple[int, int] = SIZE) -> bytes:
    """A PNG of one colour."""
    content = io.BytesIO()
    PILImage.new("RGB", size, (120, 150, 80)).save(content, "PNG")
    return content.getvalue()


def blob_photograph(kind: str, orientation: int | None = None) -> bytes:
    """A dark image with a white rectangle in one corner of what the camera wrote."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 20, np.uint8)
    pixels[60:200, 80:320] = 255
    exif = PILImage.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    content = io.BytesIO()
    PILImage.fromarray(pixels).save(content, kind, exif=exif)
    return content.getvalue()


def tasks_of(client: LabelStudioClient, project: Project, folder: Folder, files: dict[str, bytes]) -> list[int]:
    """Files as tasks of a project, served by Label Studio as local files; their ids in order."""
    for name, content in files.items():
        (folder.path / name).write_bytes(content)
    client.ensure_local_storage(project.id, folder.path)
    return import_tasks(client, project.id, [{"data": {"image": folder.address(name)}} for name in files])


def annotations_of(client: LabelStudioClient, task: int) -> list[Json]:
    """What Label Studio has stored for a task."""
    found: list[Json] = client.call("GET", f"/api/tasks/{task}/annotations/")
    return found


def corners_percent(result: Sequence[Json]) -> list[tuple[float, ...]]:
    """Left, top, width and height of each region."""
    return [tuple(item["value"][name] for name in ("x", "y", "width", "height")) for item in result]


@pytest.mark.parametrize("basic_auth", [None, "annotator:pass:word"], ids=["no authentication", "basic auth"])
def test_the_tutorials_steps_by_hand(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    folder: Folder,
    serve_model: ServeModel,
    basic_auth: str | None,
) -> None:
    """The form says Connected at the first click while the model still loads; an opened task shows the model's boxes;
    submitting stores them.
    """
    loaded = threading.Event()
    detector = ScriptedDetector(ANSWER)

    def load() -> ScriptedDetector:
        assert loaded.wait(WAIT_S * 10)
        return detector

    model = serve_model(label_studio, load=load, basic_auth=basic_auth)
    (task,) = tasks_of(client, smart_project, folder, {"a.png": field_photograph()})
    user, _, password = (basic_auth or "").partition(":")
    pages = open_label_studio()
    pages.open_model_settings(smart_project.id)
    pages.connect_model("Faster R-CNN", model.url, user=user or None, password=password)
    expect(pages.model_state).to_have_text("Connected", timeout=TIMEOUT_MS)
    assert model.predictor.engine.status.state == "loading"
    loaded.set()

    pages.open_data_manager(smart_project.id)
    pages.open_task(0)
    expect(pages.regions).to_have_text(["spike", "spike"], timeout=TIMEOUT_MS)
    expect(pages.scores).to_have_text(["0.90", "0.70"])
    expect(pages.dialog).to_have_count(0)
    pages.submit()

    (annotation,) = annotations_of(client, task)
    (prediction,) = client.predictions_of_task(task)
    assert corners_percent(annotation["result"]) == SHOWN_PERCENT
    assert {item["origin"] for item in annotation["result"]} == {"prediction"}
    assert annotation["parent_prediction"] == prediction.id
    assert prediction.model_version == model.spec(client, smart_project.id).version


def test_a_box_is_drawn_over_what_was_detected(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    folder: Folder,
    serve_model: ServeModel,
) -> None:
    """On the screen a box covers the object, whole and nothing else: also in a photograph that a phone has turned, and
    with a name that has to be quoted.
    """
    model = serve_model(label_studio, BlobDetector())
    files = {"畑 1+2 50%#.png": blob_photograph("PNG"), "turned.jpg": blob_photograph("JPEG", orientation=6)}
    tasks_of(client, smart_project, folder, files)
    client.connect_backend(smart_project.id, url=model.url)
    pages = open_label_studio()
    pages.open_data_manager(smart_project.id)
    for row, blob in enumerate([(10, 12, 40, 40), (60, 10, 88, 40)]):
        pages.open_task(row)
        expect(pages.scores).to_have_text(["0.95"], timeout=TIMEOUT_MS)
        pages.wait_for_shape(upright=row == 1)
        picture = pages.picture()
        # A box tints the white below it green, and so would it the dark beside it.
        red, green, _ = np.moveaxis(picture.pixels.astype(int), 2, 0)
        tinted = (green - red > 5) & (green > 60)
        assert tinted[picture.around(blob, margin=-4)].all()
        assert not tinted[~picture.around(blob, margin=4)].any()


def test_a_smart_rectangle_finds_what_the_threshold_hid(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    folder: Folder,
    serve_model: ServeModel,
) -> None:
    """A rectangle drawn around a spot suggests the weak detection there; accepted, it is one more region."""
    model = serve_model(label_studio, ScriptedDetector(ANSWER))
    (task,) = tasks_of(client, smart_project, folder, {"a.png": field_photograph()})
    client.connect_backend(smart_project.id, url=model.url, is_interactive=True)
    pages = open_label_studio()
    pages.open_data_manager(smart_project.id)
    pages.open_task(0)
    expect(pages.regions).to_have_count(2, timeout=TIMEOUT_MS)
    pages.choose_smart_rectangle("1")
    pages.drag((34, 55, 50, 80))
    expect(pages.suggestions).to_have_text("1 suggestions", timeout=TIMEOUT_MS)
    pages.accept_suggestions()
    expect(pages.scores).to_have_text(["0.90", "0.70", "0.30"], timeout=TIMEOUT_MS)
    expect(pages.regions).to_have_count(3)
    pages.submit()
    (annotation,) = annotations_of(client, task)
    assert corners_percent(annotation["result"]) == [*SHOWN_PERCENT, WEAK_PERCENT]
    assert model.detector.calls == 1


def test_a_broken_image_does_not_stop_the_person(
    open_label_studio: Callable[[], LabelStudioPages],
    client: LabelStudioClient,
    smart_project: Project,
    folder: Folder,
    model: LiveModel,
) -> None:
    """Opening it shows no "Runtime error" and stores nothing; our page names the reason; the next task has boxes."""
    files = {"broken.png": b"\x89PNG\r\n\x1a\n and then nothing", "fine.png": field_photograph()}
    broken, _ = tasks_of(client, smart_project, folder, files)
    client.connect_backend(smart_project.id, url=model.url)
    pages = open_label_studio()
    pages.open_data_manager(smart_project.id)
    pages.open_task(0)
    expect(pages.page.get_by_text("There was an issue loading URL")).to_be_visible(timeout=TIMEOUT_MS)
    expect(pages.dialog).to_have_count(0)
    expect(pages.regions).to_have_count(0)
    assert client.predictions_of_task(broken) == []
    pages.open_task(1)
    expect(pages.regions).to_have_count(2, timeout=TIMEOUT_MS)

    pages.page.goto(model.url)
    row = pages.page.get_by_role("listitem").filter(has_text="broken.png")
    expect(row).to_contain_text(f"Task {broken}")
    expect(row).to_contain_text("can't be read")


def test_avif_through_a_link_is_shown(
    client: LabelStudioClient,
    smart_project: Project,
    label_studio: LabelStudioProcess,
    open_label_studio: Callable[[], LabelStudioPages],
    tmp_path: Path,
) -> None:
    """What `spica up` takes, and the way it lets Label Studio reach it, gives the annotator a picture."""
    PILImage.new("RGB", (300, 400), (120, 150, 80)).save(tmp_path / "圃場 1.avif")
    storage = label_studio.document_root / f"avif-{smart_project.id}"
    storage.symlink_to(tmp_path, target_is_directory=True)
    assert client.sync_storage(client.ensure_local_storage(smart_project.id, storage).id).added == 1
    pages = open_label_studio()
    pages.open_data_manager(smart_project.id)
    pages.open_task(0)
    pages.wait_for_shape(upright=True)
