"""What tests against a real Label Studio share; the fixtures are in conftest.py."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Json

LABEL_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    <Label value="spike"/>
    <Label value="other"/>
  </RectangleLabels>
</View>"""
LabelStudioFactory = Callable[..., LabelStudioProcess]


def png(size: tuple[int, int] = (64, 48), shade: int = 128) -> bytes:
    """A PNG of ``size`` (width, height) in pixels and one shade of green."""
    content = io.BytesIO()
    Image.new("RGB", size, (0, shade, 0)).save(content, "PNG")
    return content.getvalue()


def upload_images(client: LabelStudioClient, project: int, images: Mapping[str, bytes]) -> list[int]:
    """Upload image files by name, at most 99 at a time, each becoming a task; returns their ids."""
    files = {name: (name, content) for name, content in images.items()}
    path = f"/api/projects/{project}/import"
    return [
        int(task) for task in client.call("POST", path, params={"return_task_ids": "true"}, files=files)["task_ids"]
    ]


def import_tasks(client: LabelStudioClient, project: int, tasks: Sequence[Json]) -> list[int]:
    """Add tasks, each ``{"data": {…}}``; returns their ids in the same order."""
    path = f"/api/projects/{project}/import"
    body = client.call("POST", path, params={"return_task_ids": "true"}, json=list(tasks))
    return [int(task) for task in body["task_ids"]]


def delete_task(client: LabelStudioClient, task: int) -> None:
    """Delete a task with its annotations and predictions."""
    client.call("DELETE", f"/api/tasks/{task}/")


def delete_project(client: LabelStudioClient, project: int) -> None:
    """Delete a project with its tasks, annotations and predictions."""
    client.call("DELETE", f"/api/projects/{project}/")


def create_annotation(client: LabelStudioClient, task: int, result: Sequence[Json], **fields: Any) -> int:
    """Submit an annotation as the token's user; returns its number."""
    body = client.call("POST", f"/api/tasks/{task}/annotations/", json={"result": list(result), **fields})
    return int(body["id"])


def update_annotation(client: LabelStudioClient, annotation: int, **fields: Any) -> None:
    """Change an annotation's fields, such as ``result``."""
    client.call("PATCH", f"/api/annotations/{annotation}/", json=fields)
