"""Which tasks are asked for: the Data Manager's filters, and the fields that come along."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from spica.labelstudio.records import Json, TaskRow

Narrowing = tuple[Json, ...]
"""Filters that a task has to meet, all of them."""

# Label Studio applies the names in `include` to the annotations inside a task as well, so both are listed.
ROW_FIELDS = "id,data,total_annotations,total_predictions"
ROW_AND_PREDICTIONS = ROW_FIELDS + ",predictions"
PREDICTIONS = "id,predictions,annotations,parent_prediction"
ANNOTATION_TIMES = "id,annotations,updated_at,was_cancelled,ground_truth"
ANNOTATIONS = ANNOTATION_TIMES + ",data,result"

MAX_IDS = 200
"""Task numbers asked about in one request: they stand in its address, of which proxies take 8 kB."""


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


def task_filter(column: str, operator: str, kind: str, value: Any) -> Json:
    """One filter of the Data Manager."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


ANNOTATED = task_filter("total_annotations", "greater", "Number", 0)
"""Tasks with a submitted annotation; skipped ones don't count as such."""
UNLABELLED = task_filter("total_annotations", "equal", "Number", 0)
"""Tasks without annotations; skipped ones count as such."""


def version_filter(operator: str, version: str) -> Json:
    """Tasks whose predictions' versions ``contains`` or ``not_contains`` this text."""
    return task_filter("predictions_model_versions", operator, "List", [version])


def confusable(version: str, other: str) -> bool:
    """Whether that filter takes another version for this one: on SQLite it disregards the case of letters."""
    return other != version and version.casefold() in other.casefold()


def annotations_after(newest: int) -> Json:
    """Tasks with an annotation of a higher number."""
    return task_filter("annotations_ids", "greater", "Number", newest)


def changed_after(since: datetime) -> Json:
    """Tasks that were changed after this time, which has a time zone."""
    return task_filter("updated_at", "greater", "Datetime", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def tasks_filter(tasks: Sequence[int]) -> Json:
    """Only the tasks of these numbers, at most 200 of them."""
    return task_filter("id", "in_list", "Number", list(tasks))


def task_filters(tasks: Iterable[int]) -> list[Json]:
    """One filter for each 200 of the tasks: a task has to meet one of them."""
    return [tasks_filter(chunk) for chunk in chunks(tasks)]


def chunks(tasks: Iterable[int]) -> Iterator[list[int]]:
    """The numbers by ascending order, each once, at most 200 together."""
    wanted = sorted(set(tasks))
    for start in range(0, len(wanted), MAX_IDS):
        yield wanted[start : start + MAX_IDS]


def page_params(project: int, filters: Narrowing, *, after: int, page_size: int, include: str) -> dict[str, str | int]:
    """Parameters of ``GET /api/tasks/`` for the first tasks with an id above ``after`` that meet all filters.

    Pages begin after an id and not at a number, so that tasks which begin or cease to meet the filters meanwhile
    (predictions being stored) shift nothing.
    """
    behind = task_filter("id", "greater", "Number", after)
    query = {"filters": {"conjunction": "and", "items": [behind, *filters]}, "ordering": ["tasks:id"]}
    params: dict[str, str | int] = {
        "project": project,
        "page": 1,
        "page_size": page_size,
        "include": include,
        "resolve_uri": "false",
        "query": json.dumps(query),
    }
    return {**params, "fields": "all"} if {"predictions", "annotations"} & {*include.split(",")} else params
