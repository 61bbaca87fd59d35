"""The whole of learning from submissions, as a person sees it: corrected photographs, and better boxes in Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from browser_pages import TIMEOUT_MS, LabelStudioPages, Tabs
from label_studio_helpers import delete_project, import_tasks, update_annotation
from learning_lab import Annotator, Lab, found_of, open_lab, until
from live_model import Folder
from spica.demo.field import render_field
from spica.evaluation.truth import Truth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.training.dataset import Example
from spica.training.recipe import DEFAULT_ARCHITECTURE
from spica.training.runs import Runs
from spica.training.sources import load
from training_data import example

pytestmark = [pytest.mark.browser, pytest.mark.label_studio, pytest.mark.torch, pytest.mark.slow]

BLOOD_CELLS = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "train.json"

RECIPE = {
    "architecture": DEFAULT_ARCHITECTURE,
    "min_size": 224,
    "max_size": 300,
    "epochs": 11,
    "lr": 1e-3,
    "zoom": False,
    "precision": "f32",
}
"""A minute of one processor's time."""

ANNOTATED, UNLABELLED = 30, 3
TALL, LISTED = 1600, 15
"""Height of the window in pixels: the editor lists only the regions that there is room for, these at least."""


@dataclass(frozen=True)
class Photographs:
    """What is labelled.

    Attributes:
        tags: of the labels, as the configuration has them; the first one is what the demo's detector says.
        labels: their names by class id.
        examples: photographs and the truth about them.
        least: share of a photograph's objects that are found after one training.
    """

    tags: str
    labels: tuple[str, ...]
    examples: Sequence[Example]
    least: float

    @property
    def config(self) -> str:
        """The labelling configuration."""
        return (
            '<View><Image name="image" value="$image"/>'
            f'<RectangleLabels name="label" toName="image">{self.tags}</RectangleLabels></View>'
        )


def blood_cells() -> Photographs:
    """Real photographs, through a microscope."""
    if not BLOOD_CELLS.is_file():
        pytest.skip("the optional folder ../shared/data with real photographs is absent")
    found = load(BLOOD_CELLS)
    first, *others = found.classes
    tags = f'<Label value="{first}" predicted_values="spike"/>' + "".join(f'<Label value="{o}"/>' for o in others)
    return Photographs(tags, found.classes, found.examples[: ANNOTATED + UNLABELLED], 0.5)


def negatives(folder: Path) -> Photographs:
    """Rendered fields of a few ears in inverted colours: the demo's detector finds nothing in them."""
    if BLOOD_CELLS.is_file():
        pytest.skip("the same is tested with real photographs")
    examples: list[Example] = []
    for seed in count(900):
        field = render_field(seed, width=320, height=240)
        ears = len(field.boxes_xyxy)
        if 5 <= ears <= 30:
            truth = Truth(field.boxes_xyxy, np.zeros(ears, np.int64), 320, 240)
            examples.append(example(folder / f"{seed}.png", 255 - field.pixels, truth))
        if len(examples) == ANNOTATED + UNLABELLED:
            break
    return Photographs('<Label value="spike"/>', ("spike",), examples, 0.3)


@pytest.fixture(params=["real photographs", "rendered photographs"])
def photographs(request: pytest.FixtureRequest, tmp_path: Path) -> Photographs:
    """Real ones where they are at hand, else rendered ones."""
    return blood_cells() if request.param == "real photographs" else negatives(tmp_path)


@pytest.fixture
def labelling(client: LabelStudioClient, photographs: Photographs) -> Iterator[Project]:
    """A fresh project for the photographs, deleted after the test."""
    created = client.create_project("test of learning from submissions", photographs.config)
    yield created
    delete_project(client, created.id)


@pytest.fixture
def lab(label_studio: LabelStudioProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A server that learns after every thirtieth submission."""
    with open_lab(label_studio, tmp_path / "spica", monkeypatch, RECIPE, train_after=ANNOTATED) as opened:
        yield opened


@pytest.fixture
def pages(tabs: Tabs, label_studio: LabelStudioProcess) -> LabelStudioPages:
    """A tall tab in which somebody is logged in."""
    opened = LabelStudioPages(tabs.open(height=TALL), label_studio.url)
    opened.log_in(label_studio.credentials)
    return opened


def test_corrections_become_better_boxes_without_touching_anything(
    pages: LabelStudioPages,
    client: LabelStudioClient,
    labelling: Project,
    photographs: Photographs,
    folder: Folder,
    lab: Lab,
    tmp_path: Path,
) -> None:
    """With Label Studio's switch on, the thirtieth correction starts a training: its version passes the gate, and the
    next unlabelled task opens with its boxes.
    """
    number, truths = labelling.id, [each.truth for each in photographs.examples]
    tasks = _tasks(client, number, photographs, folder)
    connected = client.connect_backend(number, url=lab.server.url)
    client.call("PATCH", f"/api/projects/{number}/", json={"start_training_on_annotation_update": True})
    pages.open_data_manager(number)
    annotator = Annotator(client, photographs.labels)

    for task, truth in list(zip(tasks, truths, strict=True))[: ANNOTATED - 1]:
        annotation, shown = annotator.label(task, truth)
        assert [each["model_version"] for each in shown] == [connected.model_version]
        update_annotation(client, annotation, lead_time=90.0)  # looked at again: one submission all the same
    until(lambda: lab.standing(number).get("new") == ANNOTATED - 1, "the submissions were not counted")
    assert lab.standing(number)["switch"] is True
    assert (lab.learning()["running"], lab.learning()["runs"]) == (None, [])

    annotator.label(tasks[ANNOTATED - 1], truths[ANNOTATED - 1])
    running = until(lambda: lab.learning()["running"], "no training began")
    assert (running["project"], running["cause"]) == (number, f"{ANNOTATED} new submissions")
    (run,) = until(lambda: lab.learning()["runs"], "the training did not end")
    assert run["state"] == "passed", run
    assert run["images"] + run["holdout"] == ANNOTATED
    assert run["verdict"]["against"] == "active"
    assert run["verdict"]["ap50"]["low"] > 0.2

    unlabelled = tasks[ANNOTATED:]
    until(lambda: _answered_by(client, unlabelled, run["version"]), "the unlabelled tasks were not predicted anew")
    until(lambda: Runs(lab.data_dir).of(labelling.key)[0].settled, "Label Studio does not show what came out")
    (row,) = client.backends(number)
    assert row.model_version.startswith(run["version"])
    assert row.title == row.model_version == client.project(number).model_version

    assert pages.label_next_task() == unlabelled[0]
    (prediction,) = client.predictions_of_task(unlabelled[0])
    assert prediction.model_version == row.model_version
    listed = prediction.result[:LISTED]
    expect(pages.scores.nth(len(listed) - 1)).to_be_visible(timeout=TIMEOUT_MS)
    names = [region["value"]["rectanglelabels"][0] for region in listed]
    assert pages.regions.all_inner_texts()[: len(listed)] == names
    scores = [float(text) for text in pages.scores.all_inner_texts()[: len(listed)]]
    assert scores == pytest.approx([region["score"] for region in listed], abs=0.006)
    expect(pages.dialog).to_have_count(0)
    pages.page.screenshot(path=tmp_path / "opened.png")
    assert found_of(truths[ANNOTATED], prediction.result) > photographs.least * len(truths[ANNOTATED])
    pages.submit()
    (stored,) = client.call("GET", f"/api/tasks/{unlabelled[0]}/annotations/")
    assert stored["parent_prediction"] == prediction.id

    annotator.label(unlabelled[1], truths[ANNOTATED + 1])
    (corrected,) = client.call("GET", f"/api/tasks/{unlabelled[1]}/annotations/")
    moved = sum(region["origin"] == "prediction-changed" for region in corrected["result"])
    assert moved > photographs.least * len(truths[ANNOTATED + 1])
    until(lambda: lab.standing(number).get("new") == 2, "only what came afterwards is new")
    assert len(lab.learning()["runs"]) == 1


def _tasks(client: LabelStudioClient, project: int, photographs: Photographs, folder: Folder) -> list[int]:
    """The photographs as tasks that Label Studio serves from its disk."""
    for each in photographs.examples:
        shutil.copyfile(each.path, folder.path / each.name)
    client.ensure_local_storage(project, folder.path)
    data: list[dict[str, Any]] = [{"data": {"image": folder.address(each.name)}} for each in photographs.examples]
    return import_tasks(client, project, data)


def _answered_by(client: LabelStudioClient, tasks: Sequence[int], version: str) -> bool:
    found = [client.predictions_of_task(task) for task in tasks]
    return all([each.model_version.startswith(version) for each in predictions] == [True] for predictions in found)
