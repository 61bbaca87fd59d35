"""Record what a real Label Studio sends to a model server, one file a request, into tests/payloads.

Starts Label Studio in a temporary folder (or takes the one in ``--data-dir``), connects a model server that writes down
what it is asked, and does through Label Studio's interface what a person does with clicks. Run it after an update of
Label Studio and look at what git shows as changed:

    python scripts/record_payloads.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.inference import Engine
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.media import MediaReader
from spica.predictor import Predictor
from spica.server.run import bind, build_app
from spica.server.service import Service
from spica.settings import Settings

OUT = Path(__file__).resolve().parent.parent / "tests" / "payloads"
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image" smart="true"><Label value="spike"/></RectangleLabels></View>'
)
NAMES = ("field.png", "畑 1/穂 #1 50%+.png", "畑 1/b.png")
_HEADERS = ("content-type", "user-agent", "authorization")
_SECRETS = frozenset({"access_token", "token", "password", "task_data_password", "authorization"})
_TIMEOUT_S = 120.0
Json = dict[str, Any]


@dataclass
class Asked:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Recorder:
    """Remembers the requests that pass through it."""

    asked: list[Asked] = field(default_factory=list)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, listened to."""

        async def listening(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            chunks: list[bytes] = []

            async def heard() -> Message:
                message = await receive()
                chunks.append(message.get("body", b""))
                return message

            await app(scope, heard, send)
            named = {name.decode(): value.decode() for name, value in scope["headers"]}
            headers = {name: named[name] for name in _HEADERS if name in named}
            text = b"".join(chunks)
            self.asked.append(Asked(scope["method"], scope["path"], headers, json.loads(text) if text else None))

        return listening

    def take(self, path: str, action: str | None = None) -> Asked:
        """The last request to a route (with this action), and forget them all."""
        found = [each for each in self.asked if each.path == path]
        if action is not None:
            found = [each for each in found if each.body.get("action") == action]
        if not found:
            seen = sorted({f"{each.path} {(each.body or {}).get('action', '')}".strip() for each in self.asked})
            raise SystemExit(
                f"Label Studio did not send {path} {action or ''}; it sent: {', '.join(seen) or 'nothing'}"
            )
        self.asked.clear()
        return found[-1]


class OneBox:
    """A detector that finds the same box in every image."""

    classes = ("spike",)
    input_size = 1333

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One box in the upper left of each image."""
        found = Detections(np.array([[10, 10, 50, 30]], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int64))
        return [found for _ in images]


@contextmanager
def recording_server(recorder: Recorder, label_studio: LabelStudioProcess, folder: Path) -> Iterator[str]:
    """A model server that is listened to; its address."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine("recorded", OneBox, queue_size=100, memory_bytes=1_000_000))
        media = stack.enter_context(
            MediaReader(
                label_studio_url=label_studio.url,
                auth=None,
                document_root=label_studio.document_root,
                media_dir=None,
                max_bytes=10_000_000,
                timeout_s=30,
            )
        )
        predictor = Predictor(
            model_id="recorded",
            classes=OneBox.classes,
            engine=engine,
            media=media,
            threshold=0.6,
            max_pixels=1_000_000,
        )
        settings = Settings(label_studio_url=label_studio.url, data_dir=folder)
        app = recorder.around(build_app(Service(predictor, weights="recorded"), settings, host="127.0.0.1"))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        sock = stack.enter_context(bind("127.0.0.1", 0, option="--port"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Session:
    """A project with photographs, and the recording server at ``url``; most methods are a person's clicks."""

    def __init__(self, client: LabelStudioClient, url: str, images: Path) -> None:
        self.client = client
        self.url = url
        self.project = client.create_project("recorded", CONFIG).id
        for number, name in enumerate(NAMES):
            path = images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (200, 100), (80, 120 + number, 60)).save(path)
        client.sync_storage(client.ensure_local_storage(self.project, images).id)
        self.tasks = [task.id for task in client.iter_tasks(self.project)]
        self.backend = 0
        self.annotation = 0

    def call(self, method: str, path: str, body: Any = None, **params: str | int) -> Any:
        """A request to Label Studio."""
        return self.client.call(method, path, json=body, params=params or None, timeout_s=_TIMEOUT_S)

    def action(self, name: str, tasks: Sequence[int], **more: Any) -> None:
        """An action of the Data Manager's."""
        body = {"selectedItems": {"all": False, "included": list(tasks)}, **more}
        self.call("POST", "/api/dm/actions/", body, id=name, project=self.project)

    def connect(self) -> None:
        """The form Connect Model, as Chromium sends it."""
        body = {
            "project": str(self.project),
            "title": "Faster R-CNN",
            "url": self.url,
            "auth_method": "NONE",
            "extra_params": "",
            "is_interactive": True,
        }
        self.backend = self.call("POST", "/api/ml", body)["id"]

    def change_extra_params(self) -> None:
        """The same form with extra params; the version changes with them."""
        body = {"project": str(self.project), "url": self.url, "extra_params": '{"score_threshold": 0.4}'}
        self.call("PATCH", f"/api/ml/{self.backend}", body)

    def open_model_page(self) -> None:
        """Label Studio asks every model for its state."""
        self.call("GET", "/api/ml", project=self.project)

    def ask_for_versions(self) -> None:
        """Through the interface only."""
        self.call("GET", f"/api/ml/{self.backend}/versions")

    def send_test_request(self) -> None:
        """A random task; nothing is stored."""
        self.call("POST", f"/api/ml/{self.backend}/predict/test", random="true")

    def open_task(self) -> None:
        """The quick view of the Data Manager."""
        self.call("GET", f"/api/tasks/{self.tasks[0]}/")

    def retrieve(self) -> None:
        """All tasks that have no prediction of the version."""
        self.action("retrieve_tasks_predictions", self.tasks)

    def draw(self) -> None:
        """What Chromium sends when a rectangle drawn with the magic wand is finished, beside a predicted one."""
        (prediction,) = self.client.predictions_of_task(self.tasks[0])
        drawn = {
            "original_width": 200,
            "original_height": 100,
            "image_rotation": 0,
            "value": {
                "x": 25.332922318125778,
                "y": 53.53267570900123,
                "width": 19.864364981504313,
                "height": 39.864364981504323,
                "rotation": 0,
                "rectanglelabels": ["spike"],
            },
            "id": "roWOjZ1H7t",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "origin": "manual",
        }
        body = {"task": self.tasks[0], "context": {"result": [*prediction.result, drawn]}}
        self.call("POST", f"/api/ml/{self.backend}/interactive-annotating", body)

    def submit(self) -> None:
        """The predicted boxes, accepted."""
        (prediction,) = self.client.predictions_of_task(self.tasks[0])
        body = {"result": prediction.result, "lead_time": 4.2, "parent_prediction": prediction.id}
        path = f"/api/tasks/{self.tasks[0]}/annotations/"
        self.annotation = self.call("POST", path, body, project=self.project)["id"]

    def update(self) -> None:
        """The boxes of an annotation deleted."""
        self.call("PATCH", f"/api/annotations/{self.annotation}/", {"result": [], "lead_time": 6.0})

    def accept_predictions(self) -> None:
        """Annotations made of predictions, several at once."""
        version = self.client.predictions_of_task(self.tasks[1])[0].model_version
        self.action("predictions_to_annotations", self.tasks[1:], model_version=version)

    def delete_annotations(self) -> None:
        """Several at once."""
        self.action("delete_tasks_annotations", self.tasks[1:])

    def start_training(self) -> None:
        """The model's own menu."""
        self.call("POST", f"/api/ml/{self.backend}/train", {})

    def add_photograph(self) -> None:
        """A task that is imported."""
        self.tasks += self.client.import_tasks(self.project, [{"data": {"image": "/data/local-files/?d=none.png"}}])

    def delete_task(self) -> None:
        """The imported one."""
        self.action("delete_tasks", [self.tasks.pop()])

    def change_project(self) -> None:
        """Any of the project's settings."""
        self.client.update_project(self.project, description="wheat")


@dataclass(frozen=True)
class Step:
    """One payload: file name, what causes it, how, and which of the requests is kept."""

    name: str
    click: str
    do: Callable[[Session], None]
    path: str
    action: str | None = None


_MODEL = "Settings > Model > "
_DM = "Data Manager > select tasks > "
STEPS = (
    Step("setup-form", _MODEL + "Connect Model > Validate and Save, extra params empty", Session.connect, "/setup"),
    Step("health", "opening Settings > Model", Session.open_model_page, "/health"),
    Step("setup-page", "opening Settings > Model or the Data Manager", Session.open_model_page, "/setup"),
    Step("versions", "GET /api/ml/<id>/versions (no click of 1.23 does it)", Session.ask_for_versions, "/versions"),
    Step("predict-test-request", _MODEL + "Send Test Request", Session.send_test_request, "/predict"),
    Step("predict-open-task", "opening a task in the Data Manager", Session.open_task, "/predict"),
    Step("predict-retrieve", _DM + "Retrieve Predictions", Session.retrieve, "/predict"),
    Step("predict-interactive", "drawing with Auto-Annotation and the magic wand", Session.draw, "/predict"),
    Step("webhook-annotation-created", "Submit", Session.submit, "/webhook", "ANNOTATION_CREATED"),
    Step("setup-extra-params", _MODEL + "Edit > extra params, Save", Session.change_extra_params, "/setup"),
    Step("predict-retrieve-anew", _DM + "Retrieve Predictions, of a new version", Session.retrieve, "/predict"),
    Step("webhook-annotation-updated", "Update", Session.update, "/webhook", "ANNOTATION_UPDATED"),
    Step(
        "webhook-annotations-created",
        _DM + "Create Annotations From Predictions",
        Session.accept_predictions,
        "/webhook",
        "ANNOTATIONS_CREATED",
    ),
    Step(
        "webhook-annotations-deleted",
        _DM + "Delete Annotations",
        Session.delete_annotations,
        "/webhook",
        "ANNOTATIONS_DELETED",
    ),
    Step("webhook-start-training", _MODEL + "Start Training", Session.start_training, "/webhook", "START_TRAINING"),
    Step("webhook-tasks-created", "Import", Session.add_photograph, "/webhook", "TASKS_CREATED"),
    Step("webhook-tasks-deleted", _DM + "Delete Tasks", Session.delete_task, "/webhook", "TASKS_DELETED"),
    Step("webhook-project-updated", "Settings > General > Save", Session.change_project, "/webhook", "PROJECT_UPDATED"),
)


def redacted(value: Any) -> Any:
    """The same without tokens and passwords."""
    if isinstance(value, list):
        return [redacted(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "REDACTED" if key in _SECRETS and isinstance(each, str) and each else redacted(each)
        for key, each in value.items()
    }


def payload(step: Step, asked: Asked, version: str) -> Json:
    """The content of one file."""
    origin = {
        "label_studio": version,
        "recorded": datetime.now(UTC).date().isoformat(),
        "caused_by": step.click,
    }
    request = {"method": asked.method, "path": asked.path, "headers": redacted(asked.headers)}
    return {"origin": origin, "request": {**request, "body": redacted(asked.body)}}


def record(label_studio: LabelStudioProcess, folder: Path, out: Path) -> None:
    """Do all steps and write one file for each."""
    out.mkdir(parents=True, exist_ok=True)
    recorder = Recorder()
    images = label_studio.document_root / "recorded"
    with label_studio.client() as client, recording_server(recorder, label_studio, folder) as url:
        version = client.version()
        session = Session(client, url, images)
        try:
            for step in STEPS:
                recorder.asked.clear()
                step.do(session)
                content = payload(step, recorder.take(step.path, step.action), version)
                text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
                (out / f"{step.name}.json").write_text(text, encoding="utf-8", newline="\n")
                print(f"{step.name}.json")
        finally:
            client.delete_project(session.project)
            shutil.rmtree(images)


def main() -> None:
    """Record into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--data-dir", type=Path, help="of a Label Studio to use instead of a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "documents").mkdir()
        data_dir = options.data_dir or folder / "label-studio"
        with LabelStudioProcess.start(data_dir, port=0, document_root=folder / "documents") as label_studio:
            record(label_studio, folder, options.out)


if __name__ == "__main__":
    main()
