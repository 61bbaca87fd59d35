"""Stored predictions: counted, read, written and deleted by version."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from spica.errors import LabelStudioRefusedError
from spica.labelstudio.api.projects import ProjectsApi
from spica.labelstudio.api.records import Json, Prediction, TaskRow
from spica.labelstudio.api.tasks import TasksApi

_TASK_FIELDS = "id,data,total_annotations,total_predictions"
_WRITE_S = 600.0
"""Label Studio checks and stores a whole bulk import inside the request."""


class PredictionsApi(ProjectsApi, TasksApi):
    """Calls about predictions."""

    def prediction_versions(self, project: int) -> dict[str, int]:
        """Stored predictions per version, latest first; predictions without a version count under ""."""
        counts: Counter[str] = Counter()
        for row in self._version_rows(project):
            counts[row.get("model_version") or ""] += int(row["count"])
        return {version: count for version, count in counts.items() if count}

    def version_times(self, project: int) -> dict[str, datetime]:
        """When the latest prediction of each version was stored, latest first."""
        rows = self._version_rows(project)
        return {row.get("model_version") or "": datetime.fromisoformat(row["latest"]) for row in rows}

    def tasks_without_prediction(self, project: int, version: str, *, page_size: int = 500) -> Iterator[TaskRow]:
        """The tasks that have no prediction of exactly this version, also if they have some of others.

        Safe to read while such predictions are being stored. Label Studio filters them: on two busy cores, 1000
        of 2000 tasks come in 3 s. Its filter finds versions that merely *contain* the text (and on
        SQLite disregards the case of letters), so where the project has such a version those tasks are looked at one
        by one, with their predictions; they come last.
        """
        for body in self._iter_bodies(
            project, (version_filter("not_contains", version),), page_size=page_size, include=_TASK_FIELDS
        ):
            yield TaskRow.read(body)
        # Read after the first pass: a confusable version that appeared meanwhile is among these.
        if not any(confusable(version, other) for other in self._all_versions(project)):
            return
        for body in self._iter_bodies(
            project,
            (version_filter("contains", version),),
            page_size=min(page_size, 50),
            include=_TASK_FIELDS + ",predictions",
            predictions=True,
        ):
            if all((stored.get("model_version") or "") != version for stored in body["predictions"]):
                yield TaskRow.read(body)

    def iter_predictions(
        self, project: int, version: str | None = None, *, page_size: int = 50
    ) -> Iterator[Prediction]:
        """Stored predictions in full, by ascending task and id; of one version, or of all when it is None."""
        filters = (version_filter("contains", version),) if version else ()
        for stored in self.predictions_by_task(project, filters, page_size=page_size):
            for prediction in stored:
                if version is None or prediction.model_version == version:
                    yield prediction

    def predictions_by_task(
        self, project: int, filters: tuple[Json, ...] = (), *, page_size: int = 50
    ) -> Iterator[list[Prediction]]:
        """The stored predictions of each task that meets the filters, by id, with the annotations made from them."""
        # Label Studio applies the names in `include` to the annotations inside a task as well.
        include = "id,predictions,annotations,parent_prediction"
        for body in self._iter_bodies(project, filters, page_size=page_size, include=include, predictions=True):
            made: dict[int, list[int]] = {}
            for annotation in body["annotations"]:
                made.setdefault(annotation["parent_prediction"], []).append(annotation["id"])
            stored = (Prediction.read({**each, "annotations": made.get(each["id"])}) for each in body["predictions"])
            yield sorted(stored, key=lambda each: each.id)

    def predictions_of_task(self, task: int) -> list[Prediction]:
        """All stored predictions of one task, by ascending id."""
        bodies = self.call("GET", "/api/predictions/", params={"task": task})
        return sorted((Prediction.read(body) for body in bodies), key=lambda prediction: prediction.id)

    def create_predictions(self, project: int, items: Sequence[Mapping[str, Any]]) -> int:
        """Store predictions in one request.

        Args:
            project: its number.
            items: each ``{"task", "result", "score", "model_version"}``.

        Returns:
            How many were stored. Label Studio silently leaves out those that don't fit the labelling configuration:
            compare with ``len(items)`` and ask :meth:`missing_predictions` which. Nothing is replaced: storing the
            same twice stores it twice.

        Raises:
            LabelStudioError: a task does not exist; then nothing was stored.
        """
        if not items:
            return 0
        path = f"/api/projects/{project}/import/predictions"
        body = self.call("POST", path, json=[dict(item) for item in items], timeout_s=_WRITE_S)
        return int(body["created"])

    def create_prediction(self, item: Mapping[str, Any]) -> Prediction:
        """Store one prediction, which Label Studio does not check against the labelling configuration."""
        return Prediction.read(self.call("POST", "/api/predictions/", json=dict(item)))

    def missing_predictions(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of ``items`` that are not stored, compared by content; an item sent twice must be stored twice."""
        missing = []
        stored: dict[int, Counter[str]] = {}
        for item in items:
            task = int(item["task"])
            if task not in stored:
                stored[task] = Counter(fingerprint_of(prediction) for prediction in self.predictions_of_task(task))
            mark = fingerprint(item)
            if stored[task][mark] > 0:
                stored[task][mark] -= 1
            else:
                missing.append(item)
        return missing

    def delete_predictions(self, project: int, version: str) -> int:
        """Delete the stored predictions of one version; returns how many.

        The connected model stays selected as the project's version, and the tasks' counters are right afterwards;
        Label Studio alone would see to neither.
        """
        selected = self.project(project).model_version
        path = f"/api/projects/{project}/model-versions/"
        answer = self.call("DELETE", path, json={"model_version": version}, timeout_s=_WRITE_S)
        deleted = int(answer["deleted_predictions"])
        if selected:
            self._select_again(project, selected)
        if deleted:
            self.recount_predictions(project)
        return deleted

    def delete_predictions_by_id(self, predictions: Iterable[int]) -> int:
        """Delete single predictions; returns how many there still were. See :meth:`recount_predictions`."""
        deleted = 0
        for prediction in predictions:
            try:
                self.call("DELETE", f"/api/predictions/{prediction}/")
            except LabelStudioRefusedError as refusal:
                if refusal.http_status != 404:
                    raise
            else:
                deleted += 1
        return deleted

    def recount_predictions(self, project: int) -> None:
        """Make Label Studio count the tasks' predictions anew, which it omits when they are deleted."""
        # An import of nothing is the one call of 1.23 that does it.
        self.call("POST", f"/api/projects/{project}/import/predictions", json=[], timeout_s=_WRITE_S)

    def _select_again(self, project: int, selected: str) -> None:
        if self.project(project).model_version == selected:
            return
        try:
            self.update_project(project, model_version=selected)
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != 400:  # 400: it named the predictions that are gone, and nothing else has the name
                raise

    def _version_rows(self, project: int) -> list[dict[str, Any]]:
        params = {"extended": "true"}
        rows: list[dict[str, Any]] = self.call("GET", f"/api/projects/{project}/model-versions/", params=params)[
            "static"
        ]
        return rows

    def _all_versions(self, project: int) -> list[str]:
        return [row.get("model_version") or "" for row in self._version_rows(project)]


def fingerprint(item: Mapping[str, Any]) -> str:
    """Equal for two predictions with the same task, version, score and regions."""
    score = item.get("score")
    content = [
        int(item["task"]),
        item.get("model_version") or "",
        None if score is None else float(score),
        item.get("result") or [],
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def fingerprint_of(prediction: Prediction) -> str:
    """:func:`fingerprint` of a stored prediction."""
    return fingerprint(
        {
            "task": prediction.task,
            "model_version": prediction.model_version,
            "score": prediction.score,
            "result": prediction.result,
        }
    )


def version_filter(operator: str, version: str) -> Json:
    """A filter of the Data Manager: tasks whose predictions' versions contain, or not, this text."""
    return {
        "filter": "filter:tasks:predictions_model_versions",
        "operator": operator,
        "type": "List",
        "value": [version],
    }


def confusable(version: str, other: str) -> bool:
    """Whether that filter takes another version for this one."""
    return other != version and version.casefold() in other.casefold()
