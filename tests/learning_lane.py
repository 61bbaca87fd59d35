"""A project of Label Studio and a learning server of its own, both of whose processes may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from PIL import Image as PILImage

from live_model import Folder
from spica.demo import model_folder
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess, free_port
from spica.models import active
from spica.models.card import read_card
from spica.models.listing import list_versions
from spica.models.version import ids, open_version
from spica.training.recipe import DEFAULT_ARCHITECTURE
from spica.training.runs import Run, Runs

SIZE = (112, 84)
"""Width and height of the images, in pixels."""

RECIPE = {
    "seed": 0,  # of its own accord each run is another attempt
    "architecture": DEFAULT_ARCHITECTURE,
    "min_size": 96,
    "max_size": 128,
    "epochs": 6,
    "batch": 2,
    "lr": 1e-3,
    "frozen": 4,
    "zoom": False,
    "precision": "f32",
}
"""A training of seconds, whose version passes the gate by far: processors round differently, and weights with them."""

ANNOTATED, UNLABELLED = 16, 2
BASE = read_card(model_folder()).id
WAIT_S = 300.0
_TESTS = Path(__file__).resolve().parent


def render(path: Path, seed: int) -> list[dict[str, Any]]:
    """An image of two to four blue squares on a dark ground; its regions as a person would submit them."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    coarse = rng.integers(0, 110, (4, 5, 3)).astype(np.uint8)
    pixels = np.array(PILImage.fromarray(coarse).resize(SIZE, PILImage.Resampling.BICUBIC), np.uint8)
    regions: list[dict[str, Any]] = []
    for number in range(2 + seed % 3):  # each in a column of its own, so that they don't overlap
        side = int(rng.integers(18, 27))
        left, top = 28 * number, int(rng.integers(0, height - side))
        pixels[top : top + side, left : left + side] = (40, 90, 250)
        box = {"x": 100 * left / width, "y": 100 * top / height, "width": 100 * side / width}
        value = {**box, "height": 100 * side / height, "rotation": 0, "rectanglelabels": ["spike"]}
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        tag = {"id": f"r{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        regions.append({**tag, **size, "value": value})
    PILImage.fromarray(pixels).save(path)
    return regions


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and was not yet buried does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace") if sys.platform == "linux" else ""
    except (ProcessLookupError, FileNotFoundError):
        return False
    return stat.rpartition(")")[2].split()[:1] != ["Z"]


@dataclass
class Lane:
    """See the module. Close it, or use it in a ``with`` block."""

    name: str
    label_studio: LabelStudioProcess
    client: LabelStudioClient
    project: int
    folder: Folder
    data_dir: Path
    tasks: list[int] = field(default_factory=list)
    regions: list[list[dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data_dir.mkdir(parents=True)
        self.key = self.client.project(self.project).key
        self.port = free_port("127.0.0.1")
        self.pids = self.data_dir / "pids.txt"
        self.log = self.data_dir / "server.log"
        self.runs = Runs(self.data_dir)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S, trust_env=False)
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        for pid in self.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)

    def fill(self) -> None:
        """Make the tasks, submit what is there on most of them, connect the server."""
        names = [f"{self.name}-{number:02}.png" for number in range(ANNOTATED + UNLABELLED)]
        self.tasks = self.folder.tasks(self.client, self.project, names)
        self.regions = [render(self.folder.path / name, seed) for seed, name in enumerate(names)]
        for number in range(ANNOTATED):
            self.submit(number)
        self.client.connect_backend(self.project, url=str(self.http.base_url).rstrip("/"))

    def submit(self, number: int) -> None:
        """As a person does who has corrected an image."""
        body = {"result": self.regions[number], "lead_time": 1}
        self.client.call("POST", f"/api/tasks/{self.tasks[number]}/annotations/", json=body)

    # --- the server -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, and wait until it takes requests."""
        arguments = ["serve", "--weights", str(model_folder()), "--data-dir", str(self.data_dir), "--precision", "f32"]
        command = [sys.executable, str(_TESTS / "learning_server.py"), json.dumps(RECIPE), str(self.pids), *arguments]
        env = {
            **os.environ,
            "LABEL_STUDIO_URL": self.label_studio.url,
            "LABEL_STUDIO_API_KEY": self.label_studio.credentials.token,
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.label_studio.document_root),
            "SPICA_HOLDOUT_MIN": "4",
            "SPICA_TRAIN_THREADS": "1",
            "PYTHONPATH": str(_TESTS),
        }
        with self.log.open("ab") as log:
            self._server = subprocess.Popen([*command, "--port", str(self.port)], env=env, stdout=log, stderr=log)
        self.until(self.answers, "the server answers")

    def answers(self) -> bool:
        """Whether the server takes requests."""
        assert self._server is not None
        assert self._server.poll() is None, self.said()
        try:
            return self.http.get("/health").is_success
        except httpx.TransportError:
            return False

    def said(self) -> str:
        """What the server has logged."""
        return self.log.read_text("utf-8", "replace")

    def kill_server(self) -> None:
        """With -9; what it has started must end by itself."""
        assert self._server is not None
        assert self._server.poll() is None, self.said()
        self._server.kill()
        self._server.wait()
        self.until(lambda: not any(is_alive(pid) for pid in self.workers), "the process that trains has ended, too")

    @property
    def workers(self) -> list[int]:
        """The processes that have trained, the latest last."""
        return [int(line) for line in self.pids.read_text("utf-8").split()] if self.pids.exists() else []

    def kill_worker(self) -> None:
        """With -9."""
        with suppress(ProcessLookupError):
            os.kill(self.workers[-1], 9)

    # --- the training -----------------------------------------------------------------------------------------------

    def ask(self) -> str:
        """Start a training; its id."""
        answer = self.http.post("/training", json={"project": self.project})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    @property
    def run(self) -> Run | None:
        """The latest training, as its file tells."""
        folders = sorted(self.runs.project_folder(self.key).glob("*-????"))
        return Run.read(folders[-1]) if folders else None

    def trained(self) -> list[str]:
        """The versions that trainings have put in the store."""
        return [version for version in ids(self.data_dir) if version != BASE]

    def served(self) -> str:
        """The version that a task of the project is answered by."""
        task = {"id": self.tasks[-1], "data": {"image": self.folder.address(f"{self.name}-17.png")}}
        config = self.client.project(self.project).label_config
        body = {"tasks": [task], "project": self.key.stem, "label_config": config}
        answer = self.http.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        return str(result["model_version"]).rpartition(".")[0]

    def check(self) -> str:
        """After a kill: the store is whole, one version is active, and that one answers; its id."""
        listed = list_versions(self.data_dir)
        assert [each.damaged for each in listed if each.damaged is not None] == []
        for each in listed:
            open_version(self.data_dir, each.id)  # every byte, against its checksum
        pointer = active.read(self.data_dir, self.key)
        wanted = active.resolve(self.data_dir, self.key, BASE)
        if pointer is not None and pointer.version is not None:
            assert wanted.version == pointer.version, wanted.reason
            assert pointer.version in {each.id for each in listed}
        return wanted.version or BASE

    def until(self, condition: Callable[[], Any], what: str, every_s: float = 0.05) -> Any:
        """Wait for what other processes do."""
        deadline = time.monotonic() + WAIT_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{self.name}: waited too long until {what}\n{self.said()[-3000:]}"
            time.sleep(every_s)
        return found
