"""Predictions into Label Studio: in batches, each confirmed, none stored twice.

Before each request Label Studio is asked which of its tasks have a prediction already, and a request that may still be
carried out is waited for: the claim knows it, also after a process was killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spica.errors import LabelConfigError, LabelStudioError, LabelStudioRefusedError, SpicaError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.regions import misfits
from spica.predictor import Outcome
from spica.prelabel.claim import Claim
from spica.prelabel.pipeline import EndOfStage, Stage
from spica.prelabel.progress import JobCounter, Patience
from spica.retry import may_still_happen

logger = logging.getLogger(__name__)

SHOWN_EVERY_S = 0.25

# Predictions in a batch. Label Studio stores 500 in one go: of more, a part could be stored and the rest refused.
FIRST, SMALLEST, LARGEST = 16, 8, 500
REGIONS = 20_000  # in one batch at most: some 8 MB of JSON, whatever the number of tasks

_QUICK_S, _SLOW_S = 1.0, 2.0
_PAYS = 0.75  # a larger batch has to save a quarter of the time per prediction to be worth a longer request
_HOLD_S = (2.0, 60.0)
_SHARE = 10.0  # with a slow model, Label Studio is left alone ten times as long as it took to store the last batch
_SETTLE_S = 3.0  # a request without an answer gets this long, and three times what the last one took
_SETTLE_STEP_S = 0.25


class Pace:
    """The size of batches, found by trying.

    Label Studio counts all tasks of a project anew for every import, so a request costs a part that grows with the
    project and a part that grows with the batch. Batches grow while requests are quick; when they are slow, they grow
    further only while that makes a prediction cheaper, and shrink otherwise.
    """

    def __init__(self) -> None:
        self.size = FIRST  # predictions in the next full batch
        self.last_s = 0.0  # seconds that the last request took
        self._cost: dict[int, float] = {}

    @property
    def hold_s(self) -> float:
        """Seconds that a prediction may wait for its batch to fill."""
        shortest, longest = _HOLD_S
        return min(max(_SHARE * self.last_s, shortest), longest)

    def note(self, count: int, seconds: float) -> None:
        """Learn from a request that stored ``count`` predictions."""
        self.last_s = seconds
        if count < self.size:
            return
        self._cost[self.size] = seconds / count
        if self._should_grow(seconds):
            self.size = min(2 * self.size, LARGEST)
        elif seconds > _SLOW_S:
            self.size = max(self.size // 2, SMALLEST)

    def halve(self, count: int) -> None:
        """A request of ``count`` predictions was refused: send fewer."""
        while self.size >= count and self.size > 1:
            self.size //= 2

    def _should_grow(self, seconds: float) -> bool:
        if seconds <= _SLOW_S:
            return seconds < _QUICK_S
        cost, bigger, smaller = self._cost[self.size], self._cost.get(2 * self.size), self._cost.get(self.size // 2)
        if bigger is not None:
            return bigger < _PAYS * cost
        return smaller is None or cost < _PAYS * smaller


@dataclass(eq=False)
class Storer:
    """Stores outcomes. For one thread."""

    client: LabelStudioClient
    project: int  # its number
    version: str
    counter: JobCounter
    patience: Patience
    claim: Claim  # knows on disk which request is under way
    on_failure: Callable[[int, SpicaError], None]
    on_progress: Callable[[], None]  # after each batch and a few times a second

    def __post_init__(self) -> None:
        self._pace = Pace()
        self._batch: dict[int, Outcome] = {}
        self._regions = 0
        self._oldest = 0.0
        self._shown = 0.0
        self._confusable: bool | None = None

    def run(self, outcomes: Stage[Any, Outcome]) -> None:
        """Store everything that comes, to its end.

        Raises:
            LabelStudioError: Label Studio refused, or stayed away for too long.
            AuthenticationError: Label Studio does not take the token any more.
        """
        while True:
            left_s = None if not self._batch else max(0.0, self._oldest + self._pace.hold_s - time.monotonic())
            try:
                outcome = outcomes.get(left_s)
            except EndOfStage:
                self._flush()
                return
            if outcome is not None:
                self._take(outcome)
            if outcome is None or len(self._batch) >= self._pace.size or self._regions >= REGIONS:
                self._flush()
            if time.monotonic() - self._shown >= SHOWN_EVERY_S:
                self._show()

    def settle(self, stop: threading.Event) -> None:
        """Wait for what a process that was killed had under way, so that its tasks are not listed again."""
        if self.claim.pending:
            self.counter.note = "finding out what became of the last request of a run that was cut off"
            self.patience(lambda: self._stored_among(self.claim.pending, stop))
            self.counter.note = None

    def _take(self, outcome: Outcome) -> None:
        task = outcome.task_id
        if task is None:
            raise ValueError("a task of a project has a number")
        self.counter.add(answered=1)
        if outcome.error is not None:
            self._fail(task, outcome.error)
        elif outcome.prediction is not None:
            if not self._batch:
                self._oldest = time.monotonic()
            self._batch[task] = outcome
            self._regions += len(outcome.prediction["result"])

    def _fail(self, task: int, error: SpicaError) -> None:
        self.counter.fail(task, error)
        self.on_failure(task, error)

    def _show(self) -> None:
        self._shown = time.monotonic()
        self.on_progress()

    def _flush(self) -> None:
        """Store the batch."""
        batch, self._batch, self._regions = self._batch, {}, 0
        if batch:
            self.patience(lambda: self._store(batch))
            self._show()

    def _store(self, batch: dict[int, Outcome]) -> None:
        """Send what is not stored yet; whatever is settled leaves ``batch``, also when a request fails."""
        while True:
            # Somebody may have opened a task meanwhile, or a request without an answer was carried out after all.
            self._confirm(self._stored_among(batch), batch)
            if not batch:
                return
            tasks = list(batch)[: max(self._pace.size, 1)]
            sent = {task: {"task": task, **(batch[task].prediction or {})} for task in tasks}
            try:
                self._send(sent, batch)
            except LabelStudioRefusedError as refusal:
                if refusal.http_status not in (400, 413):
                    raise
                self._divide(refusal, sent, batch)

    def _send(self, sent: Mapping[int, Mapping[str, Any]], batch: dict[int, Outcome]) -> None:
        began = time.monotonic()
        settle_s = _SETTLE_S + 3 * self._pace.last_s
        self.claim.sending(sent, settle_s)
        try:
            created = self.client.create_predictions(self.project, list(sent.values()))
        except LabelStudioError as error:
            if may_still_happen(error):
                self.claim.sending(sent, settle_s)  # counted from now
            else:
                self.claim.settled(sent)
            raise
        self._pace.note(len(sent), time.monotonic() - began)
        self.claim.settled(sent)
        stored = set(sent) if created == len(sent) else self._stored_among(sent)
        self._confirm(stored, batch)
        for task in sent.keys() - stored:
            self._fail(task, self._left_out(sent[task]))
            del batch[task]

    def _stored_among(self, tasks: Iterable[int], stop: threading.Event | None = None) -> set[int]:
        """Tasks with a prediction; those of a request that may still be carried out are waited for."""
        asked, pause = set(tasks), stop or threading.Event()
        while True:
            if self._confusable is None:
                self._confusable = self.client.has_confusable_versions(self.project, self.version)
            stored = self.client.having_prediction(
                self.project, self.version, asked, confusable_versions=self._confusable
            )
            if stored & self.claim.pending:
                self.claim.settled(stored)
            if not self.claim.pending & (asked - stored) or pause.wait(_SETTLE_STEP_S):
                return stored

    def _divide(self, refusal: LabelStudioRefusedError, sent: Mapping[int, object], batch: dict[int, Outcome]) -> None:
        """One of the tasks is gone, or the request is too large: find which."""
        gone = sent.keys() - self.client.existing_tasks(self.project, sent)
        for task in gone:
            del batch[task]
        self.counter.add(gone=len(gone))
        if gone:
            logger.info("tasks deleted meanwhile: %s", ", ".join(map(str, sorted(gone)[:20])))
        elif len(sent) > 1:
            self._pace.halve(len(sent))
        else:
            (task,) = sent
            self._fail(task, refusal)
            del batch[task]

    def _confirm(self, stored: Iterable[int], batch: dict[int, Outcome]) -> None:
        outcomes = [batch.pop(task) for task in stored]
        self.counter.add(stored=len(outcomes), boxes=sum(outcome.boxes for outcome in outcomes))

    def _left_out(self, item: Mapping[str, Any]) -> LabelStudioError:
        """Why Label Studio did not store a prediction that it did not refuse."""
        project = self.client.project(self.project)
        try:
            problems = misfits(project.label_config, item["result"])
        except LabelConfigError as error:
            problems = [error.summary]
        return LabelStudioError(
            "Label Studio left this prediction out without a word",
            where=f"task {item['task']}",
            got="; ".join(problems[:3]) or None,
            hint="was the labelling configuration changed meanwhile? Run it again; Label Studio's log says more",
        )
