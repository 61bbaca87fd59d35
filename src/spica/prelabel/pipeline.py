"""From task to prediction with everything overlapping: listing, reading and decoding, the network, formatting.

Each step has threads of its own and hands over through a bounded channel, so that the network never waits for a disk or
for Label Studio, and memory does not grow with the project. When one step fails, what the later ones hold still comes
out, and then the failure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Self

from spica.errors import ModelUnavailableError
from spica.inference import Engine
from spica.labelstudio.api.records import TaskRow
from spica.labelstudio.protocol import Task
from spica.predictor import Outcome
from spica.prelabel.channel import Channel, EndOfChannel

logger = logging.getLogger(__name__)

READERS = 2
"""Threads that read and decode: one may wait for a disk or the network while the other decodes."""

LISTED_AHEAD = 512
"""Tasks listed before their turn: more than any network computes while Label Studio gives the next page."""

BEGUN_AHEAD = 3
"""Begun tasks that wait, beside those in the readers' hands. The engine bounds the bytes of their decoded images."""

ANSWERED_AHEAD = 128
"""Predictions that wait to be stored, beside the batch in hand: storing for seconds must not hold up the network."""

_JOIN_S = 60.0

Begin = Callable[[Task], Callable[[], Outcome]]


class Pipeline:
    """Outcomes of tasks, in no particular order. Used in a ``with`` block; leaving it ends all threads.

    Args:
        rows: the tasks, taken one by one on a thread of their own.
        begin: reads and decodes a task's images and asks for their detections; what it gives waits for them.
        engine: the network, to know when it is gone for good.
        stop: when set, no more tasks are begun; those in hand still come out.

    Attributes:
        outcomes: what comes out, to its end.
        error: what failed, once the outcomes have come to their end.
        all_listed: whether the tasks came to their end too.
    """

    def __init__(self, rows: Iterable[TaskRow], begin: Begin, engine: Engine, stop: threading.Event) -> None:
        self._rows = rows
        self._begin = begin
        self._engine = engine
        self._stop = stop
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._tasks: Channel[Task] = Channel(LISTED_AHEAD)
        self._begun: Channel[tuple[Task, Callable[[], Outcome]]] = Channel(BEGUN_AHEAD, producers=READERS)
        self.outcomes: Channel[Outcome] = Channel(ANSWERED_AHEAD)
        self.error: BaseException | None = None
        self.all_listed = False
        steps = [self._list, *([self._read] * READERS), self._format]
        names = ["lister", *(f"reader-{number}" for number in range(READERS)), "formatter"]
        self._threads = [
            threading.Thread(target=self._run, args=(step,), name=f"spica-bulk-{name}", daemon=True)
            for step, name in zip(steps, names, strict=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._halt.set()
        for channel in (self._tasks, self._begun, self.outcomes):
            channel.abort()
        if kind is not None and not issubclass(kind, Exception):
            return  # asked to end at once: the threads are daemons
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _is_ending(self) -> bool:
        return self._stop.is_set() or self._halt.is_set()

    def _run(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - the border of a thread: the consumer raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
        self._halt.set()

    def _list(self) -> None:
        try:
            for row in self._rows:
                if self._is_ending() or not self._tasks.put(Task(id=row.id, data=row.data)):
                    return
            self.all_listed = True
        finally:
            self._tasks.end()

    def _read(self) -> None:
        try:
            while not self._is_ending():
                task = self._tasks.get(0.5)
                if task is None:
                    continue
                if not self._begun.put((task, self._begin(task))):
                    return
        except EndOfChannel:
            return
        finally:
            if self._is_ending():
                self._tasks.abort()  # wakes the lister
            self._begun.end()

    def _format(self) -> None:
        try:
            while True:
                begun = self._begun.get()
                if begun is None:
                    continue
                task, wait = begun
                outcome = wait()
                if isinstance(outcome.error, ModelUnavailableError) and self._is_engine_gone:
                    self._fail(outcome.error)  # this task is not to blame, and the others would fare no better
                    continue
                if outcome.task_id is None:
                    raise ValueError(f"a task of a project has a number, {task} has none")
                self.outcomes.put(outcome)
        except EndOfChannel:
            return
        finally:
            self.outcomes.end()

    @property
    def _is_engine_gone(self) -> bool:
        return self._engine.status.state in ("failed", "closed")
