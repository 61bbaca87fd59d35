"""Predictions into Label Studio: in batches, each confirmed, none twice.

What happened to a request that nobody heard the end of is asked before anything is sent again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from spica.errors import LabelConfigError, LabelStudioError, LabelStudioRefusedError, SpicaError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.regions import check_result
from spica.predictor import Outcome
from spica.prelabel.channel import Channel, EndOfChannel
from spica.prelabel.pace import REGIONS, Pace
from spica.prelabel.patience import Patience
from spica.prelabel.progress import Tally
from spica.retry import is_passing, may_still_happen

logger = logging.getLogger(__name__)

SHOWN_EVERY_S = 0.25
_SETTLE_S = 3.0
"""A request that was cut off is given so long, and thrice what the last one took, to show if it was carried out."""
_SETTLE_STEP_S = 0.25

Item = Mapping[str, Any]


class Journal(Protocol):
    """What is kept on disk about a request under way, for the next process if this one is killed."""

    def sending(self, tasks: Iterable[int], within_s: float) -> None:
        """Predictions of these tasks are about to be sent, which will take so many seconds at most."""

    def settled(self) -> None:
        """All that was sent has been confirmed."""


class Storer:
    """Stores outcomes. For one thread.

    Args:
        client: Label Studio.
        project: number of the project.
        version: of the predictions.
        tally: counts what is stored and what fails.
        patience: for a Label Studio that does not answer.
        journal: told what is under way.
        on_failure: told each failed task with its reason.
        on_progress: called after each batch and a few times a second.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project: int,
        version: str,
        *,
        tally: Tally,
        patience: Patience,
        journal: Journal,
        on_failure: Callable[[int, SpicaError], None],
        on_progress: Callable[[], None],
    ) -> None:
        self._client = client
        self._project = project
        self._version = version
        self._tally = tally
        self._patience = patience
        self._journal = journal
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._pace = Pace()
        self._batch: list[Outcome] = []
        self._regions = 0
        self._oldest = 0.0
        self._shown = 0.0
        self._confusable: bool | None = None

    def run(self, outcomes: Channel[Outcome]) -> None:
        """Store all that comes, until nothing more does.

        Raises:
            LabelStudioError: Label Studio refused, or stayed away for too long.
            AuthenticationError: Label Studio does not take the token any more.
        """
        while True:
            left_s = None if not self._batch else max(0.0, self._oldest + self._pace.hold_s - time.monotonic())
            try:
                outcome = outcomes.get(left_s)
            except EndOfChannel:
                self.flush()
                return
            if outcome is None:
                self.flush()
            else:
                self._take(outcome)
                if len(self._batch) >= self._pace.size or self._regions >= REGIONS:
                    self.flush()
            self._show()

    def flush(self) -> None:
        """Store what is in hand."""
        batch, self._batch, self._regions = self._batch, [], 0
        if batch:
            self._store(batch)
            self._show(now=True)

    def _take(self, outcome: Outcome) -> None:
        task = outcome.task_id
        if task is None:
            raise ValueError("a task of a project has a number")
        self._tally.add(answered=1)
        if outcome.error is not None:
            self._fail(task, outcome.error)
        elif outcome.prediction is not None:
            if not self._batch:
                self._oldest = time.monotonic()
            self._batch.append(outcome)
            self._regions += len(outcome.prediction["result"])

    def _fail(self, task: int, error: SpicaError) -> None:
        self._tally.fail(task, error)
        self._on_failure(task, error)

    def _show(self, *, now: bool = False) -> None:
        moment = time.monotonic()
        if now or moment - self._shown >= SHOWN_EVERY_S:
            self._shown = moment
            self._on_progress()

    def _store(self, batch: list[Outcome]) -> None:
        items: dict[int, Item] = {
            int(each.task_id or 0): {"task": each.task_id, **(each.prediction or {})} for each in batch
        }
        boxes = {int(each.task_id or 0): each.boxes for each in batch}
        # Somebody may have opened a task meanwhile, or a process that was killed has had the last word after all.
        self._confirm(self._stored_among(items), items, boxes)
        self._journal.sending(items, self._settle_s)
        while items:
            self._send(items, boxes)
        self._journal.settled()

    def _send(self, items: dict[int, Item], boxes: Mapping[int, int]) -> None:
        """One request; what is settled by it leaves ``items``."""
        tasks = list(items)[: max(self._pace.size, 1)]
        sent = {task: items[task] for task in tasks}
        began = time.monotonic()
        try:
            created = self._client.create_predictions(self._project, list(sent.values()))
        except LabelStudioRefusedError as refusal:
            if refusal.http_status in (400, 413):
                self._divide(refusal, sent, items)
                return
            self._look_again(refusal, sent, items, boxes)
            return
        except LabelStudioError as error:
            self._look_again(error, sent, items, boxes)
            return
        self._patience.relieve()
        self._pace.note(len(sent), time.monotonic() - began)
        if created == len(sent):
            self._confirm(sent, items, boxes)
            return
        stored = self._stored_among(sent)
        self._confirm(stored, items, boxes)
        for task in sent.keys() - stored:
            self._fail(task, self._left_out(sent[task]))
            del items[task]

    def _look_again(
        self, error: LabelStudioError, sent: Mapping[int, Item], items: dict[int, Item], boxes: Mapping[int, int]
    ) -> None:
        """After a failure: wait if that can help, then ask what has been stored in spite of it."""
        if not is_passing(error):
            raise error
        self._patience.endure(error)
        self._confirm(self._settled_among(sent, patient=may_still_happen(error)), items, boxes)

    @property
    def _settle_s(self) -> float:
        return _SETTLE_S + 3 * self._pace.last_s

    def _settled_among(self, sent: Mapping[int, Item], *, patient: bool) -> set[int]:
        """What is stored; where Label Studio may still be at work, it gets some time to finish."""
        deadline = time.monotonic() + self._settle_s
        pause = threading.Event()
        while True:
            stored = self._stored_among(sent)
            if len(stored) == len(sent) or not patient or time.monotonic() >= deadline:
                return stored
            pause.wait(_SETTLE_STEP_S)

    def _divide(self, refusal: LabelStudioRefusedError, sent: Mapping[int, Item], items: dict[int, Item]) -> None:
        """One of the tasks is gone, or the request is too large: find which."""
        there = self._patience.call(lambda: self._client.existing_tasks(self._project, sent))
        gone = sent.keys() - there
        for task in gone:
            del items[task]
        self._tally.add(gone=len(gone))
        if gone:
            logger.info("tasks deleted meanwhile: %s", ", ".join(map(str, sorted(gone)[:20])))
            return
        if len(sent) > 1:
            self._halve(len(sent))
            return
        (task,) = sent
        self._fail(task, refusal)
        del items[task]

    def _halve(self, count: int) -> None:
        while self._pace.size >= count and self._pace.size > 1:
            self._pace.size = max(self._pace.size // 2, 1)

    def _stored_among(self, items: Mapping[int, Item]) -> set[int]:
        def ask() -> set[int]:
            if self._confusable is None:
                self._confusable = self._client.has_confusable_versions(self._project, self._version)
            return self._client.having_prediction(
                self._project, self._version, items, confusable_versions=self._confusable
            )

        return self._patience.call(ask)

    def _confirm(self, stored: Iterable[int], items: dict[int, Item], boxes: Mapping[int, int]) -> None:
        tasks = list(stored)
        for task in tasks:
            items.pop(task, None)
        self._tally.add(stored=len(tasks), boxes=sum(boxes[task] for task in tasks))

    def _left_out(self, item: Item) -> LabelStudioError:
        """Why Label Studio did not store a prediction that it did not refuse."""
        project = self._patience.call(lambda: self._client.project(self._project))
        try:
            problems = check_result(project.label_config, item["result"])
        except LabelConfigError as error:
            problems = [error.summary]
        return LabelStudioError(
            "Label Studio left this prediction out without a word",
            where=f"task {item['task']}",
            got="; ".join(problems[:3]) or None,
            hint="was the labelling configuration changed meanwhile? Run it again; Label Studio's log says more",
        )
