"""A model server beside a real Label Studio, and photographs that both can read."""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image as PILImage
from pydantic import SecretStr

from label_studio_helpers import import_tasks
from scripted_detector import ScriptedDetector, detections
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.images import Image
from spica.inference import Engine, ImageDetections, Priority
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.media import MediaReader
from spica.labelstudio.records import Json
from spica.predictor import PredictionSpec, Predictor
from spica.prelabel.claim import Claim
from spica.prelabel.job import BulkJob
from spica.prelabel.progress import Progress
from spica.prelabel.selection import Selection, prepare
from spica.server.run import ModelServer
from spica.server.service import Service
from spica.settings import Settings

SIZE = (200, 100)
"""Width and height of the photographs, in pixels."""

ANSWER = detections((10, 10, 50, 30, 0.9), (100, 40, 140, 90, 0.7), (60, 60, 80, 80, 0.3))
"""Two boxes above the threshold of 0.6, and one below."""

ORIENTATION = 0x0112
"""Number of the EXIF tag that says how a photograph is turned."""

CLASSES = ("spike",)
THRESHOLD = 0.6
TIMEOUT_S = 120
Colour = tuple[int, int, int]
ServeModel = Callable[..., "LiveModel"]


class BrightnessDetector(ScriptedDetector):
    """One box on every image, as sure as the image is bright."""

    def __init__(self) -> None:
        super().__init__(Detections.empty())

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """Score 1 for white, 0 for black."""
        super().detect(images)
        return [detections((10, 10, 50, 30, float(image.mean()) / 255)) for image in images]


class NotingEngine(Engine):
    """Tells when the first image has been handed in."""

    def __init__(self, name: str, load: Callable[[], ScriptedDetector]) -> None:
        super().__init__(name, load, queue_size=100, memory_bytes=1_000_000)
        self.submitted = threading.Event()

    def submit(self, image: Image, priority: Priority) -> Future[ImageDetections]:
        """The detections to come."""
        pending = super().submit(image, priority)
        self.submitted.set()
        return pending


@dataclass
class LiveModel:
    """A running model server and what stands behind it."""

    url: str
    detector: ScriptedDetector
    service: Service
    engine: NotingEngine
    data_dir: Path
    http: httpx.Client

    @property
    def predictor(self) -> Predictor:
        """What answers its tasks."""
        return self.service.predictor

    def spec(self, client: LabelStudioClient, project: int) -> PredictionSpec:
        """How it answers a project without extra params."""
        return self.predictor.spec(client.project(project).label_config)

    def page(self) -> str:
        """Its page for people, HTML."""
        return self.http.get("/").raise_for_status().text


@dataclass
class Folder:
    """A folder below Label Studio's document root."""

    path: Path
    root: Path

    def photograph(self, name: str, colour: Colour = (200, 180, 90)) -> str:
        """Make a photograph; its address as Label Studio writes it."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(colour))
        return self.address(name)

    def address(self, name: str) -> str:
        """Of a file, as Label Studio writes it (``io_storages/localfiles/models.py``)."""
        return "/data/local-files/?d=" + quote((self.path / name).relative_to(self.root).as_posix())

    def tasks(self, client: LabelStudioClient, project: int, names: Sequence[str]) -> list[int]:
        """Photographs of these names, each of a colour of its own, as tasks; their ids in order."""
        addresses = [self.photograph(name, shade(number)) for number, name in enumerate(names)]
        return import_tasks(client, project, [{"data": {"image": address}} for address in addresses])


def shade(number: int) -> Colour:
    """A colour of its own for each number below 200, brighter with each, never black."""
    return (50 + number, 50 + number, 50 + number)


def photograph(colour: Colour, *, kind: str = "PNG", orientation: int | None = None) -> bytes:
    """An image of :data:`SIZE` and one colour, with an EXIF orientation if given."""
    image = PILImage.fromarray(np.full((SIZE[1], SIZE[0], 3), colour, np.uint8))
    content = io.BytesIO()
    exif = PILImage.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(content, kind, exif=exif)
    return content.getvalue()


def open_task(client: LabelStudioClient, task: int) -> Json:
    """What the browser asks for when somebody opens a task."""
    body: Json = client.call("GET", f"/api/tasks/{task}/", timeout_s=TIMEOUT_S)
    return body


def retrieve(client: LabelStudioClient, project: int, tasks: Sequence[int] | None = None) -> Json:
    """The Data Manager's action Retrieve Predictions, for some tasks or for all."""
    selected: Json = {"all": True, "excluded": []} if tasks is None else {"all": False, "included": list(tasks)}
    params: dict[str, str | int] = {"id": "retrieve_tasks_predictions", "project": project}
    answer: Json = client.call(
        "POST", "/api/dm/actions/", params=params, json={"selectedItems": selected}, timeout_s=TIMEOUT_S
    )
    return answer


def stored(client: LabelStudioClient, tasks: Sequence[int]) -> dict[int, list[int]]:
    """The ids of the predictions of each task."""
    return {task: [prediction.id for prediction in client.predictions_of_task(task)] for task in tasks}


def prelabel(client: LabelStudioClient, predictor: Predictor, project: int, **options: Any) -> Progress:
    """Predict all tasks of a project, annotated ones too, with a bulk job that has these options."""
    spec = prepare(client, project, predictor.spec, Selection(annotated=True))
    with (
        tempfile.TemporaryDirectory() as folder,
        Claim.take(Path(folder), client.url, project, by="a test", version=spec.prediction.version) as claim,
    ):
        return BulkJob(client, predictor, spec, claim, **options).run()


@pytest.fixture
def folder(label_studio: LabelStudioProcess, tmp_path: Path) -> Iterator[Folder]:
    """An empty folder below the document root of the Label Studio of this run."""
    path = label_studio.document_root / tmp_path.name
    path.mkdir()
    yield Folder(path, label_studio.document_root)
    shutil.rmtree(path)


@pytest.fixture
def serve_model(tmp_path: Path) -> Iterator[ServeModel]:
    """Start model servers beside a Label Studio; each stops with the test.

    By default images are read on disk, in Label Studio's own folders. ``over_http=True`` leaves only its token.
    """
    with ExitStack() as stack:

        def serve(
            label_studio: LabelStudioProcess,
            detector: ScriptedDetector | None = None,
            *,
            load: Callable[[], ScriptedDetector] | None = None,
            over_http: bool = False,
            token: str | None = None,
            basic_auth: str | None = None,
            own_token: bool = True,
        ) -> LiveModel:
            chosen = detector or ScriptedDetector(ANSWER)
            token = token or label_studio.credentials.token
            engine = stack.enter_context(NotingEngine("live-0001", load or (lambda: chosen)))
            media = stack.enter_context(
                MediaReader(
                    label_studio_url=label_studio.url,
                    auth=LabelStudioAuth(label_studio.url, token),
                    document_root=None if over_http else label_studio.document_root,
                    media_dir=None if over_http else label_studio.data_dir / "media",
                    max_bytes=10_000_000,
                    timeout_s=60,
                )
            )
            predictor = Predictor(
                model_id="live-0001",
                classes=CLASSES,
                engine=engine,
                media=media,
                threshold=THRESHOLD,
                max_pixels=1_000_000,
            )
            settings = Settings(
                label_studio_url=label_studio.url,
                label_studio_api_key=SecretStr(token) if own_token else None,
                data_dir=tmp_path / "spica",
                basic_auth=SecretStr(basic_auth) if basic_auth is not None else None,
            )
            service = Service(predictor, weights="gwhd.pth")
            running = stack.enter_context(ModelServer(service, settings, host="127.0.0.1", port=0))
            http = stack.enter_context(httpx.Client(base_url=running.url, timeout=TIMEOUT_S, trust_env=False))
            return LiveModel(running.url, chosen, service, engine, tmp_path / "spica", http)

        yield serve


@pytest.fixture
def model(label_studio: LabelStudioProcess, serve_model: ServeModel) -> LiveModel:
    """A model server beside the Label Studio of this run, reading its images on disk."""
    return serve_model(label_studio)
