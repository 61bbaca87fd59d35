"""The bulk job: predictions of one version for every task of a project that has none.

What is left to do is asked from Label Studio each time, so a job that was interrupted goes on where it stopped, and
running it twice changes nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from spica.errors import LabelStudioError, SpicaError
from spica.inference import Priority
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.protocol import Task
from spica.prediction import Outcome, Plan, Predictor

logger = logging.getLogger(__name__)

BATCH = 16
"""Predictions stored in one request: few enough to lose little at a kill, enough to keep SQLite's writer calm."""


@dataclass(slots=True)
class Progress:
    """How far a job is.

    Attributes:
        total: tasks without a prediction of the version when the job began.
        stored: predictions that Label Studio has confirmed.
        boxes: boxes in them.
        failures: tasks without a prediction, with the reason.
    """

    total: int
    stored: int = 0
    boxes: int = 0
    failures: list[tuple[int, SpicaError]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Tasks that are over, one way or the other."""
        return self.stored + len(self.failures)


def prelabel(
    client: LabelStudioClient,
    predictor: Predictor,
    project: int,
    plan: Plan,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Event | None = None,
) -> Progress:
    """Predict the tasks of ``project`` that have no prediction of ``plan.version``, and store the predictions.

    Args:
        client: Label Studio.
        predictor: the model; images that people open are served before the job's.
        project: number of the project.
        plan: how its tasks are answered.
        on_progress: called after every batch.
        stop: when set, the batch in hand is stored and the job ends.

    Raises:
        LabelStudioError: Label Studio refused something; what was stored before stays.
    """
    rows = list(client.tasks_without_prediction(project, plan.version))
    progress = Progress(total=len(rows))
    if on_progress is not None:
        on_progress(progress)
    outcomes = predictor.predict([Task(id=row.id, data=row.data) for row in rows], plan, Priority.BULK)
    for batch in _batches(_until(outcomes, stop)):
        _store(client, project, batch, progress)
        if on_progress is not None:
            on_progress(progress)
    return progress


def _until(outcomes: Iterable[Outcome], stop: Event | None) -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        if stop is not None and stop.is_set():
            return


def _batches(outcomes: Iterator[Outcome]) -> Iterator[list[Outcome]]:
    while batch := list(itertools.islice(outcomes, BATCH)):
        yield batch


def _store(client: LabelStudioClient, project: int, batch: list[Outcome], progress: Progress) -> None:
    items: list[dict[str, Any]] = []
    for outcome in batch:
        if outcome.task_id is None:
            raise ValueError("a task of a project has a number")
        if outcome.error is not None:
            progress.failures.append((outcome.task_id, outcome.error))
        elif outcome.prediction is not None:
            items.append({"task": outcome.task_id, **outcome.prediction})
    if not items:
        return
    created = client.create_predictions(project, items)
    if created != len(items):
        raise LabelStudioError(
            "Label Studio did not store all predictions it was sent",
            where=f"project {project}, tasks {items[0]['task']} to {items[-1]['task']}",
            expected=f"{len(items)} predictions",
            got=f"{created} predictions",
            hint="Label Studio's log names the reason; run the command again to complete what is missing",
        )
    progress.stored += created
    progress.boxes += sum(outcome.boxes for outcome in batch)
