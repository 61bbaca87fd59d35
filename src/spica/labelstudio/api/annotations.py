"""Submitted annotations: read a page of tasks at a time, and found by what is new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from spica.labelstudio.api.records import Json
from spica.labelstudio.api.tasks import TasksApi

ANNOTATED: Json = {
    "filter": "filter:tasks:total_annotations",
    "operator": "greater",
    "type": "Number",
    "value": 0,
}
"""Tasks with a submitted annotation; skipped ones don't count as such."""

# Label Studio applies the names in `include` to the annotations inside a task as well, so both are listed.
_MARKS = "id,annotations,updated_at,was_cancelled,ground_truth"
_FULL = _MARKS + ",data,result"


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is read of one annotation.

    Attributes:
        updated: when it was last changed, ISO 8601, as Label Studio wrote it.
        was_cancelled: the task was skipped.
        ground_truth: it is marked as the right one of its task. Label Studio marks imported ones so by itself.
        result: its regions; None where they were not asked for, and for what is no list of regions.
    """

    id: int
    task: int
    updated: str
    was_cancelled: bool = False
    ground_truth: bool = False
    result: tuple[Json, ...] | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any], task: int) -> Annotation:
        """From a task's ``annotations``."""
        result = body.get("result")
        sound = isinstance(result, list) and all(isinstance(item, dict) for item in result)
        return cls(
            id=int(body["id"]),
            task=task,
            updated=str(body.get("updated_at") or ""),
            was_cancelled=bool(body.get("was_cancelled")),
            ground_truth=bool(body.get("ground_truth")),
            result=tuple(result or ()) if sound else None,
        )


@dataclass(frozen=True, slots=True)
class AnnotatedTask:
    """A task with all its annotations, skipped ones too; ``data`` is as stored, addresses unresolved."""

    id: int
    data: Json
    annotations: tuple[Annotation, ...]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> AnnotatedTask:
        """From one item of ``/api/tasks``, or of Label Studio's JSON export."""
        task = int(body["id"])
        found = (each for each in body.get("annotations") or () if isinstance(each, dict))
        return cls(task, body.get("data") or {}, tuple(Annotation.read(each, task) for each in found))


def chosen(annotations: Sequence[Annotation]) -> Annotation | None:
    """The one annotation of a task that counts; None if all are skipped.

    Ground truth before others, then the one that was changed last, then the one with the highest number.
    """
    submitted = [each for each in annotations if not each.was_cancelled]
    return max(submitted, key=lambda each: (each.ground_truth, moment(each.updated), each.id), default=None)


def moment(updated: str) -> float:
    """Seconds since 1970 of a time that Label Studio wrote; 0 for what is none."""
    try:
        return datetime.fromisoformat(updated).timestamp()
    except (ValueError, OverflowError, OSError):  # the last: a year that this system's clock does not know
        return 0.0


class AnnotationsApi(TasksApi):
    """Calls about annotations."""

    def annotated_count(self, project: int) -> int:
        """Number of the tasks with a submitted annotation."""
        return int(self._task_page(project, (ANNOTATED,), after=0, page_size=1, include="id")["total"])

    def annotated_tasks(self, project: int, *, page_size: int = 100) -> Iterator[AnnotatedTask]:
        """All tasks with a submitted annotation, by ascending id, with their data and regions.

        One page is held in memory. Label Studio 1.23 needs 4 to 12 ms a task of 20 boxes for it.
        """
        bodies = self._iter_bodies(project, (ANNOTATED,), page_size=page_size, include=_FULL, predictions=True)
        return map(AnnotatedTask.read, bodies)

    def annotations_since(self, project: int, *, newest: int, since: datetime) -> Iterator[AnnotatedTask]:
        """The annotated tasks that may have something newer, each once, without data and regions.

        Args:
            project: its number.
            newest: tasks with an annotation of a higher number, however it came there;
            since: and tasks that were changed after this time (with a time zone). Label Studio sets a task's time when
                an annotation is submitted, changed or deleted one by one, not when many are made by an action.
        """
        created = {
            "filter": "filter:tasks:annotations_ids",
            "operator": "greater",
            "type": "Number",
            "value": newest,
        }
        changed = {
            "filter": "filter:tasks:updated_at",
            "operator": "greater",
            "type": "Datetime",
            "value": since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        seen: set[int] = set()
        for narrowed in (created, changed):
            bodies = self._iter_bodies(project, (ANNOTATED, narrowed), page_size=200, include=_MARKS, predictions=True)
            for body in bodies:
                if int(body["id"]) not in seen:
                    seen.add(int(body["id"]))
                    yield AnnotatedTask.read(body)

    def create_annotation(self, task: int, result: Sequence[Json], **fields: Any) -> int:
        """Submit an annotation as the token's user; returns its number.

        Args:
            task: its number.
            result: regions as Label Studio stores them; none says that there is nothing in the image.
            fields: anything else that Label Studio takes, such as ``ground_truth``, ``was_cancelled``, ``lead_time``.
        """
        body = self.call("POST", f"/api/tasks/{task}/annotations/", json={"result": list(result), **fields})
        return int(body["id"])

    def update_annotation(self, annotation: int, **fields: Any) -> None:
        """Change an annotation's fields, such as ``result``."""
        self.call("PATCH", f"/api/annotations/{annotation}/", json=fields, repeatable=True)
