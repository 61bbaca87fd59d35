"""What a job over a project still has to do, asked from Label Studio a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spica.labelstudio.api.predictions import PredictionsApi, confusable, version_filter
from spica.labelstudio.api.records import Json, Prediction, TaskRow

_FIELDS = "id,data,total_annotations,total_predictions"
_IDS = 200
"""So many task numbers are asked about in one request: they stand in its address, of which proxies take 8 kB."""
_WITH_PREDICTIONS = 50
"""Tasks a page where their predictions come along, which may hold a thousand boxes each."""

Narrowing = tuple[Json, ...]
"""Filters of the Data Manager that a task has to meet, all of them."""

UNLABELLED: Json = {
    "filter": "filter:tasks:total_annotations",
    "operator": "equal",
    "type": "Number",
    "value": 0,
}
"""Tasks without annotations; skipped ones count as such."""


@dataclass(frozen=True, slots=True)
class View:
    """A tab of the Data Manager.

    Attributes:
        any_of: whether one of its filters is enough.
        filters: in Label Studio's own form.
    """

    id: int
    project: int
    title: str
    any_of: bool
    filters: tuple[Json, ...]

    @classmethod
    def read(cls, body: Any) -> View:
        """From ``/api/dm/views/<id>/``."""
        data = body.get("data") or {}
        filters = data.get("filters") or {}
        return cls(
            id=int(body["id"]),
            project=int(body["project"]),
            title=str(data.get("title") or ""),
            any_of=filters.get("conjunction") == "or",
            filters=tuple(filters.get("items") or ()),
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some tasks by ascending id.

    Attributes:
        rows: the tasks.
        last: where the next page begins, the highest id that was looked at.
        is_last: nothing comes behind it.
    """

    rows: tuple[TaskRow, ...]
    last: int
    is_last: bool


class WorklistApi(PredictionsApi):
    """Calls about the tasks that a job has to do."""

    def view(self, view: int) -> View:
        """One tab of the Data Manager.

        Raises:
            LabelStudioError: there is none with this number.
        """
        return View.read(self.call("GET", f"/api/dm/views/{view}/"))

    def views(self, project: int) -> list[View]:
        """The tabs of a project's Data Manager."""
        return [View.read(body) for body in self.call("GET", "/api/dm/views/", params={"project": project})]

    def count_tasks(self, project: int, filters: Narrowing = (), *, without_version: str | None = None) -> int:
        """Number of the tasks that meet all filters, and have no prediction of a version that contains this text."""
        wanted = filters if without_version is None else (*filters, version_filter("not_contains", without_version))
        return int(self._task_page(project, wanted, after=0, page_size=1, include="id")["total"])

    def worklist_page(self, project: int, version: str, filters: Narrowing = (), *, after: int, page_size: int) -> Page:
        """Tasks with an id above ``after`` without a prediction of any version that contains ``version``.

        Pages begin after an id and not at a number, so that predictions which are stored meanwhile shift nothing.
        Projects with versions that contain one another: see :meth:`has_confusable_versions`.
        """
        wanted = (*filters, version_filter("not_contains", version))
        return _page(self._task_page(project, wanted, after=after, page_size=page_size, include=_FIELDS), after)

    def confusable_page(self, project: int, version: str, filters: Narrowing = (), *, after: int) -> Page:
        """The same for tasks that have a prediction of a version that contains ``version``, but none of itself."""
        wanted = (*filters, version_filter("contains", version))
        body = self._predictions_page(project, wanted, after=after)
        page = _page(body, after)
        having = {task for task, stored in _stored(body) if any(each.model_version == version for each in stored)}
        return Page(tuple(row for row in page.rows if row.id not in having), page.last, page.is_last)

    def has_confusable_versions(self, project: int, version: str) -> bool:
        """Whether another version's name contains this one, so that Label Studio's filter can't tell them apart."""
        return any(confusable(version, other) for other in self.prediction_versions(project))

    def having_prediction(
        self, project: int, version: str, tasks: Iterable[int], *, confusable_versions: bool | None = None
    ) -> set[int]:
        """Those of ``tasks`` that have a prediction of exactly this version.

        Args:
            project: its number.
            version: of the predictions.
            tasks: their numbers.
            confusable_versions: what :meth:`has_confusable_versions` says; asked if None.
        """
        if confusable_versions is None:
            confusable_versions = self.has_confusable_versions(project, version)
        exact = not confusable_versions
        having: set[int] = set()
        for chunk in _chunks(tasks):
            wanted = (tasks_filter(chunk), version_filter("contains", version))
            if exact:
                body = self._task_page(project, wanted, after=0, page_size=len(chunk) * 4, include="id")
                having.update(int(row["id"]) for row in body["tasks"])
                if len(body["tasks"]) >= int(body["total"]):
                    continue
            for task in chunk:  # confusable names, or a page that Label Studio cut short
                if any(each.model_version == version for each in self.predictions_of_task(task)):
                    having.add(task)
        return having

    def existing_tasks(self, project: int, tasks: Iterable[int], filters: Narrowing = ()) -> set[int]:
        """Those of ``tasks`` that the project has, and that meet all filters."""
        found: set[int] = set()
        for chunk in _chunks(tasks):
            wanted = (tasks_filter(chunk), *filters)
            body = self._task_page(project, wanted, after=0, page_size=len(chunk) * 4, include="id")
            found.update(int(row["id"]) for row in body["tasks"])
        return found

    def _predictions_page(self, project: int, filters: Narrowing, *, after: int) -> Json:
        return self._task_page(
            project,
            filters,
            after=after,
            page_size=_WITH_PREDICTIONS,
            include=_FIELDS + ",predictions",
            predictions=True,
        )


def tasks_filter(tasks: Sequence[int]) -> Json:
    """Only the tasks of these numbers, at most 200 of them."""
    return {"filter": "filter:tasks:id", "operator": "in_list", "type": "Number", "value": list(tasks)}


def _chunks(tasks: Iterable[int]) -> Iterator[list[int]]:
    wanted = sorted(set(tasks))
    for start in range(0, len(wanted), _IDS):
        yield wanted[start : start + _IDS]


def task_filters(tasks: Iterable[int]) -> list[Json]:
    """One filter for each 200 of the tasks: a task has to meet one of them."""
    return [tasks_filter(chunk) for chunk in _chunks(tasks)]


def _page(body: Json, after: int) -> Page:
    rows: list[TaskRow] = []
    last = after
    for item in body["tasks"]:
        if int(item["id"]) > last:  # a join on Label Studio's side may repeat a row
            last = int(item["id"])
            rows.append(TaskRow.read(item))
    # Label Studio may cap the page's size; an empty page ends it too.
    return Page(tuple(rows), last, len(body["tasks"]) >= int(body["total"]) or not rows)


def _stored(body: Json) -> Iterator[tuple[int, list[Prediction]]]:
    seen = 0
    for item in body["tasks"]:
        if int(item["id"]) > seen:
            seen = int(item["id"])
            yield seen, sorted((Prediction.read(each) for each in item["predictions"]), key=lambda each: each.id)
