"""Annotations as Label Studio tells them, and the one of each task that counts."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import AnnotatedTask, Annotation, chosen, moment

EARLY, LATE = "2026-11-23T08:51:33.748604Z", "2026-11-23T08:51:33.748605Z"


def one(number: int, updated: str = EARLY, **more: Any) -> Annotation:
    """An annotation of task 1."""
    return Annotation(id=number, updated=updated, **more)


@pytest.mark.parametrize(
    ("annotations", "number"),
    [
        pytest.param([], None, id="none"),
        pytest.param([one(1, was_cancelled=True)], None, id="skipped"),
        pytest.param([one(2), one(1, LATE)], 1, id="changed last"),
        pytest.param([one(1), one(2)], 2, id="at the same moment the later number"),
        pytest.param([one(1, ground_truth=True), one(2, LATE)], 1, id="ground truth first"),
        pytest.param([one(1, ground_truth=True, was_cancelled=True), one(2)], 2, id="skipped ground truth"),
        pytest.param([one(1, "2026-01-01T10:00:00+09:00"), one(2, "2026-01-01T02:00:00Z")], 2, id="time zones"),
        pytest.param([one(1), one(2, "")], 1, id="no time"),
    ],
)
def test_the_one_that_counts(annotations: list[Annotation], number: int | None) -> None:
    """Of a task's annotations the ground truth counts, else the one changed last; never a skipped one."""
    found = chosen(annotations)
    assert (found.id if found is not None else None) == number


def test_times() -> None:
    """Times are told apart to a microsecond; what is none is long ago."""
    assert moment(LATE) > moment(EARLY) > moment("nonsense") == 0.0


def test_reading() -> None:
    """Missing and null fields are read as nothing said; a list with what is no region says nothing."""
    body = {"id": 3, "data": None, "annotations": [{"id": 5, "result": None}, {"id": 6, "result": [{"id": "r"}, 7]}]}
    task = AnnotatedTask.read(body)
    assert task == AnnotatedTask(id=3, annotations=(Annotation(id=5), Annotation(id=6)))


def test_tasks_come_once_and_page_by_page() -> None:
    """Pages follow one another, and a task that meets both conditions of what may be new comes once."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params["query"]
        asked.append(query)
        first = '"value": 0}' in query.split("total_annotations")[0]
        tasks = [{"id": 4, "annotations": [{"id": 9, "updated_at": LATE}]}]
        return httpx.Response(200, json={"total": 1 if first else 0, "tasks": tasks if first else []})

    with LabelStudioClient("http://ls", "token", transport=httpx.MockTransport(answer)) as client:
        from datetime import UTC, datetime

        found = list(client.annotations_since(2, newest=8, since=datetime(2026, 11, 23, tzinfo=UTC)))
    assert [task.id for task in found] == [4]
    assert "annotations_ids" in asked[0]
    assert "2026-11-23T00:00:00.000000Z" in asked[-1]
