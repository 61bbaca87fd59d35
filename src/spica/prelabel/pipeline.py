"""From task to prediction with everything overlapping: listing, reading and decoding, the network, formatting.

Each stage has threads of its own and holds a bounded number of results, so that the network never waits for a disk or
for Label Studio, and memory does not grow with the project. When one stage fails, what the later ones hold still comes
out, and then the failure.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import httpx

from spica.errors import MediaError, ModelUnavailableError, SpicaError
from spica.http import origin_of
from spica.inference import Engine
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.download import DownloadError
from spica.labelstudio.protocol import Task
from spica.labelstudio.records import TaskRow
from spica.predictor import Media, Outcome
from spica.prelabel.progress import Patience
from spica.retry import BUSY_STATUSES

READERS = 2  # threads: one may wait for a disk or the network while the other decodes
LISTED_AHEAD = 512  # tasks: more than any network computes while Label Studio gives the next page
BEGUN_AHEAD = 3  # tasks, beside those that the readers hold; the engine bounds the bytes of their decoded images
ANSWERED_AHEAD = 128  # predictions, beside the batch: storing for seconds must not hold up the network

_JOIN_S = 60.0
_TURN_S = 0.5  # waits are cut into turns of this length: on Windows a longer one would not notice Ctrl-C
_MEDIA_TRIES = 3

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_END: Any = object()
Begin = Callable[[Task], Callable[[], Outcome]]


class EndOfStage(Exception):  # noqa: N818 - no failure: there is nothing more to come
    """All results were taken, or the stage was closed."""


class Stage(Generic[_In, _Out]):
    """Applies ``step`` to items on threads of its own, at most ``capacity`` results ahead of whoever takes them.

    Attributes:
        error: what ended it early, known once its results have come to their end.
    """

    def __init__(
        self, name: str, items: Iterable[_In], step: Callable[[_In], _Out], *, capacity: int, threads: int = 1
    ) -> None:
        self._items = iter(items)
        self._step = step
        self._results: queue.Queue[_Out] = queue.Queue(capacity)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._running = threads
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"spica-bulk-{name}-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Begin to take items."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take no more items; what was not taken is dropped."""
        self._closed.set()

    def join(self, timeout_s: float) -> None:
        """Wait for its threads."""
        for thread in self._threads:
            thread.join(timeout_s)

    def get(self, timeout_s: float | None = None) -> _Out | None:
        """The next result; None when ``timeout_s`` seconds are over.

        Raises:
            EndOfStage: nothing more will come.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closed.is_set():
            turn = _TURN_S if until is None else max(0.0, min(_TURN_S, until - time.monotonic()))
            try:
                result = self._results.get(timeout=turn)
            except queue.Empty:
                if until is not None and time.monotonic() >= until:
                    return None
                continue
            if result is _END:
                self._results.put_nowait(result)  # for the next who asks
                break
            return result
        raise EndOfStage

    def __iter__(self) -> Iterator[_Out]:
        return self

    def __next__(self) -> _Out:
        try:
            result = self.get()
        except EndOfStage:
            if self.error is not None:
                raise self.error from None
            raise StopIteration from None
        assert result is not None  # noqa: S101 - only a bounded wait gives None
        return result

    def _run(self) -> None:
        try:
            while self.error is None and not self._closed.is_set():
                with self._lock:
                    item = next(self._items, _END)
                if item is _END:
                    break
                self._put(self._step(item))
        except BaseException as error:  # noqa: BLE001 - the border of a thread: whoever takes the results raises it
            self.error = self.error or error
        with self._lock:
            self._running -= 1
            is_last = self._running == 0
        if is_last:
            self._put(_END)

    def _put(self, result: _Out) -> None:
        while not self._closed.is_set():
            try:
                self._results.put(result, timeout=_TURN_S)
            except queue.Full:
                continue
            return


class Pipeline:
    """Outcomes of tasks, in no particular order. Used in a ``with`` block; leaving it ends all threads.

    Args:
        rows: the tasks.
        begin: reads and decodes a task's images and asks for their detections; what it returns waits for them.
        engine: the network, to know when it is gone for good.
        stop: when set, no more tasks are begun; those that were begun still come out.

    Attributes:
        outcomes: what comes out; its ``error`` is what ended the pipeline early.
        all_listed: whether all tasks were taken.
    """

    def __init__(self, rows: Iterable[TaskRow], begin: Begin, engine: Engine, stop: threading.Event) -> None:
        self._rows = rows
        self._engine = engine
        self._stop = stop
        self.all_listed = False
        tasks = Stage("lister", self._tasks(), lambda task: task, capacity=LISTED_AHEAD)
        begun = Stage("reader", self._until_stopped(tasks), begin, capacity=BEGUN_AHEAD, threads=READERS)
        self.outcomes = Stage("formatter", begun, self._finish, capacity=ANSWERED_AHEAD)
        self._stages: list[Stage[Any, Any]] = [tasks, begun, self.outcomes]

    def __enter__(self) -> Self:
        for stage in self._stages:
            stage.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for stage in self._stages:
            stage.close()
        if kind is None or issubclass(kind, Exception):  # else asked to end at once: the threads are daemons
            for stage in self._stages:
                stage.join(_JOIN_S)

    def _tasks(self) -> Iterator[Task]:
        for row in self._rows:
            if self._stop.is_set():
                return
            yield Task(id=row.id, data=row.data)
        self.all_listed = True

    def _until_stopped(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            if self._stop.is_set():
                return
            yield task

    def _finish(self, wait: Callable[[], Outcome]) -> Outcome:
        outcome = wait()
        if isinstance(outcome.error, ModelUnavailableError) and self._engine.status.state in ("failed", "closed"):
            raise outcome.error  # this task is not to blame, and the others would fare no better
        return outcome


class JobEndsError(Exception):
    """What ends the whole job and not one task. Not a :class:`SpicaError`: those are a task's own when it is read."""

    def __init__(self, reason: SpicaError) -> None:
        super().__init__(reason.summary)
        self.reason = reason


@dataclass(frozen=True)
class PatientMedia:
    """Reads images; waits for a Label Studio that restarts, instead of failing task after task. Thread-safe."""

    media: Media
    client: LabelStudioClient
    patience: Patience
    lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        """The bytes of an image.

        Raises:
            MediaError: this image can't be read.
            JobEndsError: no image can be read, because Label Studio refuses the token or stays away.
        """
        for _ in range(_MEDIA_TRIES - 1):
            try:
                return self.media.read(uri, task_id=task_id)
            except MediaError as error:
                if not self._is_label_studios(error):
                    raise
            try:
                with self.lock:  # one asks for all
                    self.patience(self.client.whoami)
            except SpicaError as error:
                raise JobEndsError(error) from error
        return self.media.read(uri, task_id=task_id)

    def _is_label_studios(self, error: MediaError) -> bool:
        """Whether it was Label Studio that gave no answer, or none to this token."""
        cause = error.__cause__
        if not isinstance(cause, DownloadError) or cause.where is None:
            return False
        try:
            if origin_of(cause.where) != origin_of(self.client.url):
                return False
        except (httpx.InvalidURL, UnicodeError):
            return False
        return cause.http_status is None or cause.http_status in BUSY_STATUSES or cause.http_status == 401
