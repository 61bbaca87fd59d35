"""Predictions that are stored twice after all, and their removal.

Two ways lead there that no client can close: a person opens a task in the very moment in which its prediction is being
imported, and Label Studio repeats a whole request when its SQLite was locked near the end of it. What is removed is
only ever an exact copy, and the older one stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from spica.labelstudio.api.predictions import fingerprint_of
from spica.labelstudio.api.records import Prediction
from spica.labelstudio.client import LabelStudioClient

logger = logging.getLogger(__name__)


def count_of(client: LabelStudioClient, project: int, version: str) -> int:
    """Predictions of a version, as Label Studio counts them."""
    return client.prediction_versions(project).get(version, 0)


def remove_doubles(client: LabelStudioClient, project: int, version: str, doubtful: Iterable[int]) -> int:
    """Delete exact copies among the predictions of a version; returns how many.

    Args:
        client: Label Studio.
        project: its number.
        version: of the predictions.
        doubtful: tasks to look at in any case. Others are looked at only when the counts say that there are copies.
    """
    removed = 0
    for task in sorted(set(doubtful)):
        removed += _delete(client, _copies(client.predictions_of_task(task), version))
    wanted = _surplus(client, project, version)
    if wanted > 0:
        for _, stored in client.several_predictions(project, version):
            found = _delete(client, _copies(stored, version))
            removed += found
            wanted -= found
            if wanted <= 0:
                break
    if removed:
        logger.info("project %s: %d predictions were stored twice, the copies are removed", project, removed)
        client.recount_predictions(project)
    return removed


def _surplus(client: LabelStudioClient, project: int, version: str) -> int:
    """By how many the predictions of a version exceed the tasks that have one; 0 where that can't be known."""
    if client.has_confusable_versions(project, version):
        return 0
    without = client.count_tasks(project, without_version=version)
    return count_of(client, project, version) - (client.count_tasks(project) - without)


def _copies(stored: Sequence[Prediction], version: str) -> list[int]:
    """Ids of predictions that repeat an older one in every respect."""
    seen: set[str] = set()
    copies: list[int] = []
    for prediction in sorted(stored, key=lambda each: each.id):
        if prediction.model_version != version:
            continue
        mark = fingerprint_of(prediction)
        if mark in seen:
            copies.append(prediction.id)
        seen.add(mark)
    return copies


def _delete(client: LabelStudioClient, predictions: Sequence[int]) -> int:
    return client.delete_predictions_by_id(predictions) if predictions else 0
