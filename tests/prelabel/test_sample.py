"""A few photographs of a project, to try something out on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spica.errors import LabelConfigError, MediaError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import TaskRow
from spica.prelabel.selection import sample

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>'
)


class Project:
    """Stands for a client of Label Studio with one project."""

    def __init__(self, tasks: list[dict[str, Any]], config: str = CONFIG) -> None:
        self.rows = [TaskRow(id=number, data=data) for number, data in enumerate(tasks, 1)]
        self.config = config
        self.asked = 0

    def project(self, number: int) -> Any:
        return SimpleNamespace(label_config=self.config)

    def iter_tasks(self, number: int, *, page_size: int) -> Iterator[TaskRow]:
        for row in self.rows:
            self.asked += 1
            yield row


class Media:
    """Gives the address as the bytes; what begins with ``gone`` can't be had."""

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        if uri.startswith("gone"):
            raise MediaError("gone", where=uri)
        return uri.encode("utf-8")


def sampled(project: Project, folder: Path, count: int = 3) -> list[bytes]:
    found = sample(cast("LabelStudioClient", project), 1, Media(), folder, count=count)
    assert all(path.parent == folder for path in found)
    return [path.read_bytes() for path in found]


def test_photographs_are_spread_over_the_project(tmp_path: Path) -> None:
    """Not the first three, which may show the same plant, and not the whole of a large project."""
    project = Project([{"image": f"写真{number}"} for number in range(5000)])
    found = sampled(project, tmp_path)
    assert found == [f"写真{number}".encode() for number in (0, 33, 66)]
    assert project.asked <= 101


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        pytest.param([], [], id="no tasks"),
        pytest.param([{"image": "a"}], [b"a"], id="fewer than asked for"),
        pytest.param([{"image": "gone"}, {"text": "x"}, {"image": "b"}], [b"b"], id="some can't be had"),
        pytest.param([{"image": None}], [], id="an empty address"),
    ],
)
def test_what_cannot_be_had_is_passed_over(tasks: list[dict[str, Any]], expected: list[bytes], tmp_path: Path) -> None:
    """A task without an image is no failure here; the job will name it."""
    assert sampled(Project(tasks), tmp_path) == expected


def test_a_project_without_rectangles_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """Its configuration is the first thing to mend."""
    with pytest.raises(LabelConfigError):
        sampled(Project([{"image": "a"}], "<View/>"), tmp_path)
