"""From submissions to a better version in front of people: a real Label Studio, a real training, a real exchange."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage

from learning_lab import Annotator, Lab, open_lab, until
from live_model import Folder, open_task
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.models import active
from spica.training.recipe import DEFAULT_ARCHITECTURE
from training_data import wheat

pytestmark = [pytest.mark.label_studio, pytest.mark.torch, pytest.mark.slow]

SIZE = (112, 84)
"""Width and height of the images, in pixels."""

RECIPE = {
    "architecture": DEFAULT_ARCHITECTURE,
    "min_size": 96,
    "max_size": 128,
    "epochs": 12,
    "lr": 1e-3,
    "zoom": False,
    "precision": "f32",
}
"""A training of seconds."""

ANNOTATED, UNLABELLED = 16, 2


@dataclass
class Rendered:
    """An image of bright squares, and where they are."""

    pixels: NDArray[np.uint8]
    boxes_xyxy: list[tuple[int, int, int, int]]

    @property
    def regions(self) -> list[dict[str, Any]]:
        """As a person would submit them."""
        width, height = SIZE
        return [
            {
                "id": f"r{number}",
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "x": 100 * left / width,
                    "y": 100 * top / height,
                    "width": 100 * (right - left) / width,
                    "height": 100 * (bottom - top) / height,
                    "rotation": 0,
                    "rectanglelabels": ["spike"],
                },
            }
            for number, (left, top, right, bottom) in enumerate(self.boxes_xyxy)
        ]


def render(seed: int) -> Rendered:
    """Two to four bright squares on a dark ground of its own."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    coarse = rng.integers(0, 110, (4, 5, 3)).astype(np.uint8)
    ground = PILImage.fromarray(coarse).resize(SIZE, PILImage.Resampling.BICUBIC)
    pixels = np.array(ground, np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    while len(boxes) < 2 + seed % 3:
        side = int(rng.integers(18, 30))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        box = (left, top, left + side, top + side)
        if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes):
            boxes.append(box)
            pixels[top : top + side, left : left + side] = (250, 220, 60)
    return Rendered(pixels, boxes)


def is_shown(wanted: dict[str, Any], result: list[dict[str, Any]]) -> bool:
    """Whether one of the regions is where this one is."""

    def box(region: dict[str, Any]) -> list[float]:
        value = region["value"]
        return [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]

    def iou(a: list[float], b: list[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(0.0, width) * max(0.0, height)
        areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (a, b)]
        return shared / (sum(areas) - shared)

    return any(iou(box(wanted), box(region)) > 0.5 for region in result)


@pytest.fixture
def lab(label_studio: LabelStudioProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A server that learns by a short recipe."""
    with open_lab(label_studio, tmp_path / "spica", monkeypatch, RECIPE, holdout_min=4) as opened:
        yield opened


def test_from_submissions_to_boxes_and_back(
    client: LabelStudioClient, project: Project, folder: Folder, lab: Lab
) -> None:
    """Start Training makes a version of the submissions; it passes, takes over boxes and title; rollback undoes it."""
    rendered = [render(seed) for seed in range(ANNOTATED + UNLABELLED)]
    tasks = folder.tasks(client, project.id, [f"{number}.png" for number in range(len(rendered))])
    for number, each in enumerate(rendered):
        PILImage.fromarray(each.pixels).save(folder.path / f"{number}.png")
    row = client.connect_backend(project.id, url=lab.server.url)
    before = open_task(client, tasks[-1])["predictions"]
    assert [each["model_version"] for each in before] == [row.model_version]
    for task, each in list(zip(tasks, rendered, strict=True))[:ANNOTATED]:
        client.call("POST", f"/api/tasks/{task}/annotations/", json={"result": each.regions, "lead_time": 1})
    client.call("POST", f"/api/ml/{row.id}/train")
    seen = until(lambda: lab.learning()["running"], "no training began")
    assert (seen["project"], seen["cause"]) == (project.id, "Start Training in Label Studio")
    stages: set[int] = set()

    def over() -> Any:
        learning = lab.learning()
        if learning["running"] is not None:
            stages.add(learning["running"]["epoch"])
        return learning["runs"]

    (run,) = until(over, "the training did not end")
    assert run["state"] == "passed", run
    assert (run["images"], run["holdout"], run["boxes"]) == (
        12,
        4,
        sum(len(each.boxes_xyxy) for each in rendered[:ANNOTATED]) - run["verdict"]["objects"],
    )
    assert len(stages) > 2
    assert run["verdict"]["ap50"]["candidate"] > 0.5
    assert lab.served(project.id) == run["version"]
    assert run["verdict"]["sentence"] in httpx.get(lab.server.url, trust_env=False).text.replace("&#39;", "'")

    def refreshed() -> bool:
        found = [client.predictions_of_task(task)[-1:] for task in tasks[ANNOTATED:]]
        return all([p.model_version.startswith(run["version"]) for p in each] == [True] for each in found)

    until(refreshed, "the unlabelled tasks were not predicted anew")
    older, now = open_task(client, tasks[-1])["predictions"]
    assert older["id"] == before[0]["id"]
    assert all(is_shown(region, now["result"]) for region in rendered[-1].regions)
    assert not all(is_shown(region, before[0]["result"]) for region in rendered[-1].regions)
    (moved,) = client.backends(project.id)
    assert moved.title == moved.model_version == now["model_version"] == client.project(project.id).model_version

    active.rollback(lab.data_dir, project.key, by="a test")
    until(lambda: lab.served(project.id) == lab.base_id, "the rollback was not noticed")

    def restored() -> bool:
        found = [{each.model_version for each in client.predictions_of_task(task)} for task in tasks[ANNOTATED:]]
        shown = client.project(project.id).model_version
        return (shown, found) == (row.model_version, [{row.model_version, now["model_version"]}] * UNLABELLED)

    until(restored, "Label Studio does not show the old boxes of all unlabelled tasks")


def test_a_refused_version_changes_nothing_for_the_annotator(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The switch starts a training whose version is worse: it is kept and said, and boxes, title, version and what is
    active stay; what it has learned from counts no more.
    """
    hopeless = {**RECIPE, "epochs": 1, "lr": 1e-6}
    fields = wheat(tmp_path / "fields", range(900, 909), width=320, height=240).examples
    with open_lab(label_studio, tmp_path / "spica", monkeypatch, hopeless, holdout_min=4, train_after=8) as lab:
        tasks = folder.tasks(client, project.id, [each.name for each in fields])
        for each in fields:
            (folder.path / each.name).write_bytes(each.path.read_bytes())
        row = client.connect_backend(project.id, url=lab.server.url)
        client.call("PATCH", f"/api/projects/{project.id}/", json={"start_training_on_annotation_update": True})
        (before,) = open_task(client, tasks[-1])["predictions"]
        assert before["result"]
        annotator = Annotator(client, ("spike",))
        for task, each in zip(tasks[:8], fields[:8], strict=True):
            annotator.label(task, each.truth)
        (run,) = until(lambda: lab.learning()["runs"], "no training began by itself")
        assert (run["state"], run["cause"]) == ("refused", "8 new submissions"), run
        assert (lab.data_dir / "models" / run["version"]).is_dir()
        assert active.read(lab.data_dir, project.key) is None
        until(lambda: lab.standing(project.id).get("new") == 0, "the submissions were not counted again")
        assert (lab.served(project.id), lab.learning()["running"]) == (lab.base_id, None)
        (after,) = open_task(client, tasks[-1])["predictions"]
        assert (after["id"], after["result"]) == (before["id"], before["result"])
        (now,) = client.backends(project.id)
        assert (now.title, now.model_version) == (row.title, row.model_version)
        assert client.project(project.id).model_version == row.title
