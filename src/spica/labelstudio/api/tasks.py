"""Tasks, read a page at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from spica.errors import LabelStudioError
from spica.labelstudio.api.records import Json, TaskRow
from spica.labelstudio.api.transport import Transport

_ROW_FIELDS = "id,data,total_annotations,total_predictions"


class TasksApi(Transport):
    """Calls about tasks.

    None of them makes Label Studio ask a model, unless the project has the deprecated
    ``evaluate_predictions_automatically`` switched on.
    """

    def task_count(self, project: int) -> int:
        """Number of a project's tasks."""
        params: dict[str, str | int] = {"project": project, "page": 1, "page_size": 1, "include": "id"}
        return int(self.call("GET", "/api/tasks/", params=params)["total"])

    def iter_tasks(self, project: int, *, page_size: int = 500) -> Iterator[TaskRow]:
        """All tasks of a project by ascending id; one page is held in memory."""
        for body in self._iter_bodies(project, (), page_size=page_size, include=_ROW_FIELDS):
            yield TaskRow.read(body)

    def import_tasks(self, project: int, tasks: list[Json]) -> list[int]:
        """Add tasks, each ``{"data": {…}}``; returns their ids in the same order."""
        body = self.call("POST", f"/api/projects/{project}/import", params={"return_task_ids": "true"}, json=tasks)
        return [int(task) for task in body["task_ids"]]

    def upload_images(self, project: int, images: Mapping[str, bytes]) -> list[int]:
        """Upload image files by name, at most 99 at a time, each becoming a task; returns their ids."""
        if len(images) > 99:  # DATA_UPLOAD_MAX_NUMBER_FILES
            raise LabelStudioError(
                "too many files in one upload", expected="at most 99", got=str(len(images)), hint="upload in parts"
            )
        files = {name: (name, content) for name, content in images.items()}
        body = self.call("POST", f"/api/projects/{project}/import", params={"return_task_ids": "true"}, files=files)
        return [int(task) for task in body["task_ids"]]

    def delete_task(self, task: int) -> None:
        """Delete a task with its annotations and predictions."""
        self.call("DELETE", f"/api/tasks/{task}/")

    def _iter_bodies(
        self,
        project: int,
        filters: tuple[Json, ...],
        *,
        page_size: int,
        include: str,
        predictions: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Tasks that meet all filters, by ascending id.

        Pages begin after the last id seen instead of at a number, so that tasks which begin or cease to meet the
        filters meanwhile (predictions being stored) shift nothing.

        Raises:
            LabelStudioError: Label Studio says twice that there are more, and gives none.
        """
        last, empty = 0, 0
        while True:
            page = self._task_page(
                project, filters, after=last, page_size=page_size, include=include, predictions=predictions
            )
            bodies, before = page["tasks"], last
            for body in bodies:
                if int(body["id"]) > last:  # a join on Label Studio's side may repeat a row
                    last = int(body["id"])
                    yield body
            if len(bodies) >= int(page["total"]):  # Label Studio may cap the page size
                return
            empty = empty + 1 if last == before else 0
            if empty > 1:  # once: the tasks were deleted between being counted and being read
                raise LabelStudioError(
                    "Label Studio counts tasks that it does not give",
                    where=f"project {project}, behind task {last}",
                    expected=f"{page['total']} more tasks",
                    got="none",
                    hint="try again; look into Label Studio's log if that does not help",
                )

    def _task_page(
        self,
        project: int,
        filters: tuple[Json, ...],
        *,
        after: int,
        page_size: int,
        include: str,
        predictions: bool = False,
    ) -> Json:
        """The first tasks with an id above ``after`` that meet all filters, and the ``total`` of them."""
        behind = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
        query = {"filters": {"conjunction": "and", "items": [behind, *filters]}, "ordering": ["tasks:id"]}
        params: dict[str, str | int] = {
            "project": project,
            "page": 1,
            "page_size": page_size,
            "include": include,
            "resolve_uri": "false",
            "query": json.dumps(query),
        }
        if predictions:
            params["fields"] = "all"
        body: Json = self.call("GET", "/api/tasks/", params=params)
        return body
