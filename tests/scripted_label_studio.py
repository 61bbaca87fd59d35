"""A Label Studio with one project that answers what trainings ask, over HTTP, from memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from recording_server import Answer, Asked, RecordingServer
from spica.project import ProjectKey

CREATED = "2023-11-14T22:13:20.281866Z"
KEY = ProjectKey(1, int(datetime.fromisoformat(CREATED).timestamp()))
CONFIG = """<View><Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>"""


@dataclass
class ScriptedLabelStudio:
    """See the module.

    Attributes:
        every: N of the project's switch, 0 for off.
        annotated: tasks with a submitted annotation, where there are no images.
        images: files by task, from 1.
        regions: of the annotation of each image.
        config: the labelling configuration.
        broken: answers nothing but 500.
    """

    every: int = 1
    annotated: int = 0
    images: list[bytes] = field(default_factory=list)
    regions: list[list[dict[str, Any]]] = field(default_factory=list)
    config: str = CONFIG
    broken: bool = False

    def __post_init__(self) -> None:
        self._server = RecordingServer(self._answer)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__(None, None, None)

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return self._server.url

    @property
    def counted(self) -> int:
        """How often annotations were counted."""
        return sum(asked.path.startswith("/api/tasks") for asked in self._server.asked)

    @property
    def asked(self) -> int:
        """How often the project was asked for."""
        return sum(asked.path.startswith("/api/projects/1") for asked in self._server.asked)

    @property
    def project(self) -> dict[str, Any]:
        """As it is told in events and by the API."""
        return {
            "id": 1,
            "title": "field",
            "created_at": CREATED,
            "label_config": self.config,
            "min_annotations_to_start_training": self.every,
            "task_number": self.annotated or len(self.images),
            "total_annotations_number": self.annotated or len(self.images),
            "skipped_annotations_number": 0,
        }

    def _answer(self, asked: Asked) -> Answer:
        path = urlsplit(asked.path).path
        if self.broken:
            return Answer(status=500)
        if path.startswith("/data/upload/"):
            return Answer(self.images[int(path.rpartition("/")[2].partition(".")[0]) - 1])
        if path.startswith("/api/tasks"):
            body: Any = self._tasks(parse_qs(urlsplit(asked.path).query))
        elif path == "/api/projects/1/":
            body = self.project
        elif path == "/api/projects/":
            body = {"results": [self.project], "next": None, "count": 1}
        elif path == "/api/ml/":
            body = []
        else:
            return Answer(status=404)
        return Answer(json.dumps(body).encode("utf-8"), headers={"Content-Type": "application/json"})

    def _tasks(self, query: dict[str, list[str]]) -> dict[str, Any]:
        tasks = [self._task(number) for number in range(1, (self.annotated or len(self.images)) + 1)]
        size = int(query.get("page_size", ["1000"])[0])
        return {"tasks": tasks[:size], "total": len(tasks)}

    def _task(self, number: int) -> dict[str, Any]:
        updated = f"2026-11-23T00:00:{number % 60:02}Z"
        result = self.regions[number - 1] if self.regions else []
        annotation = {"id": number, "updated_at": updated, "result": result}
        data = {"image": f"/data/upload/1/{number}.png"}
        return {"id": number, "data": data, "annotations": [annotation], "updated_at": updated}
