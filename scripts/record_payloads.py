"""Record what a real Label Studio sends to a model server, one file a request, into tests/payloads.

Starts Label Studio in a temporary folder and `spica serve` with the demonstration's detector, puts a server that
writes down what it is asked between the two, and does through Label Studio's interface what a person does with clicks.
Run it after an update of Label Studio and look at what git shows as changed:

    python scripts/record_payloads.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from spica.demo import model_folder
from spica.demo.field import render_field
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from recording_server import Answer, Asked, RecordingServer  # noqa: E402  # needs the line above

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image" smart="true"><Label value="spike"/></RectangleLabels></View>'
)
NAMES = ("field.png", "畑 1/穂 #1 50%+.png", "畑 1/b.png")
SIZE = (200, 120)
"""Width and height of the photographs in pixels: room for a few ears."""

_HEADERS = ("content-type", "user-agent", "authorization")
_SECRETS = frozenset({"access_token", "token", "password", "task_data_password", "authorization"})
_TIMEOUT_S = 120.0


@contextmanager
def model_server(label_studio: LabelStudioProcess, folder: Path) -> Iterator[str]:
    """`spica serve` with the demonstration's detector, ready; its address."""
    command = [sys.executable, "-m", "spica", "serve", "--weights", str(model_folder()), "--port", "0"]
    command += ["--label-studio-url", label_studio.url, "--data-dir", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as child:
        try:
            yield next(word for line in child.stderr or () for word in line.split() if word.startswith("http://127."))
        finally:
            child.terminate()
            child.communicate()


class Session:
    """A project with photographs, connected by nobody yet; ``url`` is the recording server's."""

    def __init__(self, client: LabelStudioClient, url: str, images: Path) -> None:
        self.client = client
        self.url = url
        self.project = client.create_project("recorded", CONFIG).id
        for number, name in enumerate(NAMES):
            path = images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render_field(number, width=SIZE[0], height=SIZE[1]).pixels).save(path)
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

    def draw(self) -> None:
        """What Chromium sends when a rectangle drawn with the magic wand is finished, beside predicted ones."""
        drawn = {
            "original_width": SIZE[0],
            "original_height": SIZE[1],
            "image_rotation": 0,
            "value": {"x": 25.3, "y": 53.5, "width": 19.8, "height": 39.8, "rotation": 0, "rectanglelabels": ["spike"]},
            "id": "roWOjZ1H7t",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "origin": "manual",
        }
        result = [*self.client.predictions_of_task(self.tasks[0])[0].result, drawn]
        body = {"task": self.tasks[0], "context": {"result": result}}
        self.call("POST", f"/api/ml/{self.backend}/interactive-annotating", body)

    def submit(self) -> None:
        """The predicted boxes, accepted."""
        prediction = self.client.predictions_of_task(self.tasks[0])[0]
        body = {"result": prediction.result, "lead_time": 4.2, "parent_prediction": prediction.id}
        path = f"/api/tasks/{self.tasks[0]}/annotations/"
        self.annotation = self.call("POST", path, body, project=self.project)["id"]

    def accept_predictions(self) -> None:
        """Annotations made of predictions, several at once."""
        version = self.client.predictions_of_task(self.tasks[1])[0].model_version
        self.action("predictions_to_annotations", self.tasks[1:], model_version=version)

    def add_photograph(self) -> None:
        """A task that is imported."""
        body = [{"data": {"image": "/data/local-files/?d=none.png"}}]
        path = f"/api/projects/{self.project}/import"
        self.tasks += self.call("POST", path, body, return_task_ids="true")["task_ids"]


@dataclass(frozen=True)
class Step:
    """One payload: file name, what causes it, how, and which of the requests is kept."""

    name: str
    click: str
    do: Callable[[Session], object]
    path: str
    action: str | None = None


_MODEL = "Settings > Model > "
_DM = "Data Manager > select tasks > "
_RETRIEVE = _DM + "Retrieve Predictions"


def _look(session: Session) -> None:
    session.call("GET", "/api/ml", project=session.project)


def _retrieve(session: Session) -> None:
    session.action("retrieve_tasks_predictions", session.tasks)


STEPS = (
    Step("setup-form", _MODEL + "Connect Model > Validate and Save, extra params empty", Session.connect, "/setup"),
    Step("health", "opening Settings > Model", _look, "/health"),
    Step("setup-page", "opening Settings > Model or the Data Manager", _look, "/setup"),
    Step(
        "versions",
        "GET /api/ml/<id>/versions (no click of 1.23 does it)",
        lambda s: s.call("GET", f"/api/ml/{s.backend}/versions"),
        "/versions",
    ),
    Step(
        "predict-test-request",
        _MODEL + "Send Test Request",
        lambda s: s.call("POST", f"/api/ml/{s.backend}/predict/test", random="true"),
        "/predict",
    ),
    Step(
        "predict-open-task",
        "opening a task in the Data Manager",
        lambda s: s.call("GET", f"/api/tasks/{s.tasks[0]}/"),
        "/predict",
    ),
    Step("predict-retrieve", _RETRIEVE, _retrieve, "/predict"),
    Step("predict-interactive", "drawing with Auto-Annotation and the magic wand", Session.draw, "/predict"),
    Step("webhook-annotation-created", "Submit", Session.submit, "/webhook", "ANNOTATION_CREATED"),
    Step("setup-extra-params", _MODEL + "Edit > extra params, Save", Session.change_extra_params, "/setup"),
    Step("predict-retrieve-anew", _RETRIEVE + ", of a new version", _retrieve, "/predict"),
    Step(
        "webhook-annotation-updated",
        "Update",
        lambda s: s.call("PATCH", f"/api/annotations/{s.annotation}/", {"result": [], "lead_time": 6.0}),
        "/webhook",
        "ANNOTATION_UPDATED",
    ),
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
        lambda s: s.action("delete_tasks_annotations", s.tasks[1:]),
        "/webhook",
        "ANNOTATIONS_DELETED",
    ),
    Step(
        "webhook-start-training",
        _MODEL + "Start Training",
        lambda s: s.call("POST", f"/api/ml/{s.backend}/train", {}),
        "/webhook",
        "START_TRAINING",
    ),
    Step("webhook-tasks-created", "Import", Session.add_photograph, "/webhook", "TASKS_CREATED"),
    Step(
        "webhook-tasks-deleted",
        _DM + "Delete Tasks",
        lambda s: s.action("delete_tasks", [s.tasks.pop()]),
        "/webhook",
        "TASKS_DELETED",
    ),
    Step(
        "webhook-project-updated",
        "Settings > General > Save",
        lambda s: s.call("PATCH", f"/api/projects/{s.project}/", {"description": "wheat"}),
        "/webhook",
        "PROJECT_UPDATED",
    ),
)


def redacted(value: Any) -> Any:
    """The same without tokens and passwords."""
    if isinstance(value, list):
        return [redacted(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "REDACTED" if key in _SECRETS and isinstance(item, str) and item else redacted(item)
        for key, item in value.items()
    }


def payload(step: Step, asked: Sequence[Asked], version: str) -> dict[str, Any]:
    """The content of one file: the last request to the step's route, and with its action."""
    requests: list[tuple[Asked, Any]] = [
        (request, json.loads(request.body) if request.body else None) for request in asked
    ]
    fitting = [
        (request, body)
        for request, body in requests
        if request.path.partition("?")[0] == step.path and (step.action is None or body["action"] == step.action)
    ]
    if not fitting:
        seen = sorted({f"{request.path} {(body or {}).get('action', '')}".strip() for request, body in requests})
        raise SystemExit(
            f"Label Studio did not send {step.path} {step.action or ''}; it sent: {', '.join(seen) or 'nothing'}"
        )
    request, body = fitting[-1]
    headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
    return {
        "origin": {"label_studio": version, "recorded": f"{datetime.now(UTC):%Y-%m-%d}", "caused_by": step.click},
        "request": {
            "method": request.method,
            "path": step.path,
            "headers": redacted(headers),
            "body": redacted(body),
        },
    }


def record(label_studio: LabelStudioProcess, folder: Path, out: Path) -> None:
    """Do all steps and write one file for each."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        label_studio.client() as client,
        model_server(label_studio, folder) as model,
        httpx.Client(base_url=model, timeout=_TIMEOUT_S, trust_env=False) as http,
    ):

        def forward(request: Asked) -> Answer:
            headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
            response = http.request(request.method, request.path, content=request.body, headers=headers)
            return Answer(response.content, response.status_code, {"Content-Type": response.headers["content-type"]})

        while http.get("/state").json()["model"]["state"] != "ready":
            time.sleep(0.2)
        with RecordingServer(forward) as recorder:
            session = Session(client, recorder.url, label_studio.document_root / "recorded")
            for step in STEPS:
                recorder.asked.clear()
                step.do(session)
                text = json.dumps(payload(step, recorder.asked, client.version()), ensure_ascii=False, indent=2) + "\n"
                (out / f"{step.name}.json").write_text(text, encoding="utf-8", newline="\n")
                print(f"{step.name}.json")


def main() -> None:
    """Record into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "payloads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "documents").mkdir()
        data_dir = folder / "label-studio"
        with LabelStudioProcess.start(data_dir, port=0, document_root=folder / "documents") as label_studio:
            record(label_studio, folder, options.out)


if __name__ == "__main__":
    main()
