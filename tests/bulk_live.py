"""What the tests of the bulk job with a real Label Studio share: projects of photographs, workers to run and kill."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from label_studio_helpers import delete_project, import_tasks
from live_model import Folder
from spica.demo.field import write_images
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>'
)
MODEL = "bulk-0001"
WAIT_S = 120.0
_TESTS = Path(__file__).resolve().parent
_DATA = _TESTS.parent.parent / "shared" / "data"


def photographs(scratch: Path) -> list[bytes]:
    """Photographs to make tasks of: real ones where they are at hand, else rendered ones."""
    real = [sorted((_DATA / name / "images").glob("*.jpg")) for name in ("wheat", "pear", "bccd")]
    found = [path for group in itertools.zip_longest(*real) for path in group if path is not None]
    return [path.read_bytes() for path in found or write_images(scratch, 8, first_seed=5)]


def fill(folder: Folder, client: LabelStudioClient, project: int, count: int, scratch: Path) -> list[int]:
    """Make a project of ``count`` photographs, each with content of its own; their tasks in order."""
    contents = itertools.cycle(photographs(scratch))
    addresses = []
    for number in range(count):
        name = f"{number:04}.jpg"
        # What follows the end of a JPEG is ignored, but makes it another image to a memory that goes by content.
        (folder.path / name).write_bytes(next(contents) + number.to_bytes(4, "big"))
        addresses.append(folder.address(name))
    return import_tasks(client, project, [{"data": {"image": address}} for address in addresses])


def versions_by_task(client: LabelStudioClient, project: int) -> dict[int, list[str]]:
    """The versions of the predictions of each task that has any."""
    found: dict[int, list[str]] = {}
    for prediction in client.iter_predictions(project, page_size=500):
        found.setdefault(prediction.task, []).append(prediction.model_version)
    return found


def ids_by_task(client: LabelStudioClient, project: int) -> dict[int, list[int]]:
    """The ids of the predictions of each task that has any."""
    found: dict[int, list[int]] = {}
    for prediction in client.iter_predictions(project, page_size=500):
        found.setdefault(prediction.task, []).append(prediction.id)
    return found


@dataclass
class Worker:
    """A command in a process of its own."""

    process: subprocess.Popen[str]

    def wait_for(self, mark: str, times: int = 1) -> bool:
        """Wait until it has said so many times "image" (one computed) or "sending"; False if it ended before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            times -= line.strip() == mark
            if times <= 0:
                return True
        return False

    def kill(self) -> None:
        """As the system does when memory is short, or a person with kill -9."""
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)

    def finish(self) -> tuple[int, str]:
        """Its exit status and all that it said."""
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out + err


StartWorker = Callable[..., Worker]


def command(project: int, *extra: str, cost_ms: float = 1, model: str = MODEL, weights: bool = True) -> list[str]:
    """The command line of a worker that predicts a project."""
    arguments = ["prelabel", "--project", str(project), *extra]
    if weights:
        arguments += ["--weights", "scripted.pth", "--precision", "f32"]  # there is nothing to compare in a script
    return [sys.executable, str(_TESTS / "bulk_worker.py"), str(cost_ms), model, *arguments]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start commands as processes; those still running are killed with the test."""
    with ExitStack() as stack:

        def start(label_studio: LabelStudioProcess, line: Sequence[str], *, token: str | None = None) -> Worker:
            env = {
                **os.environ,
                "LABEL_STUDIO_URL": label_studio.url,
                "LABEL_STUDIO_API_KEY": token or label_studio.credentials.token,
                "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(label_studio.document_root),
                "SPICA_DATA_DIR": str(tmp_path / "spica"),
                "PYTHONPATH": str(_TESTS),
                "PYTHONUNBUFFERED": "1",
            }
            process = subprocess.Popen(
                line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
            )
            stack.callback(_end, process)
            return Worker(process)

        yield start


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=WAIT_S)


@pytest.fixture
def bulk_project(client: LabelStudioClient) -> Iterator[Project]:
    """A fresh project with the label spike."""
    created = client.create_project("bulk", CONFIG)
    yield created
    delete_project(client, created.id)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.05)
