"""A model server that learns beside a real Label Studio, by a recipe that takes seconds, and somebody who annotates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from label_studio_helpers import create_annotation
from live_model import open_task
from spica.assistance.edits import MOVE_IOU
from spica.demo import model_folder
from spica.evaluation.matching import iou_float64
from spica.evaluation.truth import Truth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Json
from spica.models import store
from spica.server.build import build_engine, build_service
from spica.server.run import ModelServer
from spica.server.trainer import train_in_child
from spica.settings import Settings
from spica.training.runs import TrainingJob

TIMEOUT_S = 400


@dataclass
class Lab:
    """A model server with the demo's detector beside a Label Studio."""

    server: ModelServer
    http: httpx.Client
    data_dir: Path
    base_id: str

    def learning(self) -> dict[str, Any]:
        """What it tells of its learning."""
        found: dict[str, Any] = self.http.get("/state").json()["learning"]
        return found

    def served(self, project: int) -> str:
        """The version in front of a project."""
        return next((each["version"] for each in self.learning()["served"] if each["project"] == project), "")

    def standing(self, project: int) -> dict[str, Any]:
        """What its last look at a project has found; empty before the first."""
        return next((each for each in self.learning()["projects"] if each["project"] == project), {})


@contextmanager
def open_lab(
    label_studio: LabelStudioProcess,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Mapping[str, Any],
    **settings: Any,
) -> Iterator[Lab]:
    """A server that learns by a short recipe.

    Args:
        label_studio: beside which.
        data_dir: its data folder.
        monkeypatch: of the test.
        recipe: fields of :class:`spica.training.recipe.Recipe`.
        settings: that are not the defaults.
    """

    def short(job: TrainingJob, report: Callable[[dict[str, Any]], None], stop: threading.Event) -> dict[str, Any]:
        return train_in_child(replace(job, recipe=dict(recipe)), report, stop)

    monkeypatch.setattr("spica.server.trainer.train_in_child", short)
    chosen = Settings(
        label_studio_url=label_studio.url,
        label_studio_api_key=SecretStr(label_studio.credentials.token),
        label_studio_data_dir=label_studio.data_dir,
        local_files_document_root=label_studio.document_root,
        data_dir=data_dir,
        precision="f32",
        train_threads=1,
        **settings,
    )
    with ExitStack() as stack:
        identity = store.identify(
            model_folder(), data_dir=data_dir, score_floor=0.05, max_detections=1000, norm_eps=0.0
        )
        engine = stack.enter_context(build_engine(identity, chosen))
        service = build_service(engine, identity, chosen)
        server = stack.enter_context(ModelServer(service, chosen, host="127.0.0.1", port=0))
        http = stack.enter_context(httpx.Client(base_url=server.url, timeout=60, trust_env=False))
        yield Lab(server, http, data_dir, identity.id)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for what other processes do."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.25)
    return found


@dataclass
class Annotator:
    """Somebody who knows the truth, and opens, corrects and submits tasks as the editor would on their behalf.

    Attributes:
        client: their Label Studio.
        labels: names by the truth's class ids.
    """

    client: LabelStudioClient
    labels: Sequence[str]

    def label(self, task: int, truth: Truth) -> tuple[int, list[Json]]:
        """Open a task, make the truth of what is shown, submit it; the annotation's number, and what was shown."""
        shown: list[Json] = open_task(self.client, task)["predictions"]
        latest = max(shown, key=lambda each: int(each["id"]), default=None)
        regions = self.corrected(latest["result"] if latest is not None else [], truth)
        told = {"lead_time": 2.0 + len(regions), "parent_prediction": latest["id"] if latest is not None else None}
        return create_annotation(self.client, task, regions, **told), shown

    def corrected(self, shown: Sequence[Json], truth: Truth) -> list[Json]:
        """Boxes near an object are dragged onto it, the others deleted, what has no box is drawn."""
        found = corners(shown, truth)
        left = iou_float64(found, truth.boxes_xyxy)  # (N, M)
        regions = []
        for number in range(len(truth)):
            near = int(left[:, number].argmax()) if len(shown) else -1
            if near >= 0 and left[near, number] >= MOVE_IOU:
                left[near] = 0
                regions.append({**self._drawn(truth, number), "id": shown[near]["id"], "origin": "prediction-changed"})
            else:
                regions.append(self._drawn(truth, number))
        return regions

    def _drawn(self, truth: Truth, number: int) -> Json:
        left, top, right, bottom = truth.boxes_xyxy[number].tolist()
        return {
            "id": f"drawn-{number}",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "origin": "manual",
            "original_width": truth.width,
            "original_height": truth.height,
            "image_rotation": 0,
            "value": {
                "x": 100 * left / truth.width,
                "y": 100 * top / truth.height,
                "width": 100 * (right - left) / truth.width,
                "height": 100 * (bottom - top) / truth.height,
                "rotation": 0,
                "rectanglelabels": [self.labels[int(truth.class_ids[number])]],
            },
        }


def corners(result: Sequence[Json], truth: Truth) -> Any:
    """Regions as boxes in the pixels of an image, float32 (N, 4)."""
    values = [each["value"] for each in result]
    boxes = [[v["x"], v["y"], v["x"] + v["width"], v["y"] + v["height"]] for v in values]
    size = np.array([truth.width, truth.height, truth.width, truth.height], np.float32) / 100
    return np.array(boxes, np.float32).reshape(-1, 4) * size


def found_of(truth: Truth, result: Sequence[Json]) -> int:
    """How many of the objects have one of the regions where they are, whatever its label."""
    if not result:
        return 0
    return int((iou_float64(corners(result, truth), truth.boxes_xyxy) > 0.5).any(axis=0).sum())
