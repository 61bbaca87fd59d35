"""One running model: it loads in the background, answers one image at a time, the most urgent first, and remembers.

The network computes on one thread of its own, so that the caller's thread (and the event loop behind it) only waits.
Raw detections are remembered by the image's content; thresholds are applied later, so changing one, or asking about a
spot that was clicked, never runs the network again.
"""

from __future__ import annotations

import contextlib
import copy
import heapq
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, Literal, Self

from spica.boxes import Detections
from spica.detectors.contract import Detector
from spica.errors import ModelUnavailableError, QueueFullError, SpicaError
from spica.images import Image

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "closed"]

DECODED_BYTES: Final = 256 * 2**20
"""Pixels that wait for one model in one priority: three photographs of 24 megapixels, or a single larger one."""


class Priority(IntEnum):
    """Who is served first: the lower number."""

    INTERACTIVE = 0
    """A person has drawn something and waits for the answer."""
    OPENED = 1
    """A person has opened one image."""
    BATCH = 2
    """Several tasks in one request."""
    BULK = 3
    """The job over the whole project."""


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """Raw detections of an image, with the size of the oriented image in pixels."""

    detections: Detections
    width: int
    height: int

    @property
    def nbytes(self) -> int:
        """Bytes held, those of the objects around the arrays as measured: 730 to 940."""
        return self.detections.nbytes + 1024


class DetectionCache:
    """The most recently used raw detections by image digest, within a bound in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._nbytes = 0
        self._entries: OrderedDict[str, ImageDetections] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> ImageDetections | None:
        """Of the image of this digest, if they are still remembered."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None:
                self._entries.move_to_end(digest)
            return entry

    def put(self, digest: str, entry: ImageDetections) -> None:
        """Remember, and forget the oldest beyond the bound."""
        with self._lock:
            before = self._entries.pop(digest, None)
            self._nbytes += entry.nbytes - (before.nbytes if before is not None else 0)
            self._entries[digest] = entry
            while self._nbytes > self._limit_bytes and self._entries:
                _, forgotten = self._entries.popitem(last=False)
                self._nbytes -= forgotten.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes held at present."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)


class ByteBudget:
    """Admits images until they hold ``limit_bytes`` together, and one that is larger alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Wait until there is room for ``nbytes``."""
        with self._turn, self._changed:  # in turn, so that small ones do not pass a large one for ever
            self._changed.wait_for(lambda: not self._held or self._held + nbytes <= self._limit_bytes)
            self._held += nbytes

    def give_back(self, nbytes: int) -> None:
        """Make room again."""
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()


@dataclass(eq=False, slots=True)
class _Job:
    """An image to be computed, None once its turn came, and all who wait: one who gives up ends it for no other."""

    image: Image | None
    priority: Priority
    waiting: list[Future[ImageDetections]] = field(default_factory=list)

    def settle(self, outcome: ImageDetections | SpicaError) -> None:
        for future in self.waiting:
            if not future.set_running_or_notify_cancel():
                continue
            if isinstance(outcome, SpicaError):
                future.set_exception(copy.copy(outcome))
            else:
                future.set_result(outcome)


@dataclass(slots=True)
class EngineStatus:
    """A snapshot for pages and metrics.

    Attributes:
        state: ``loading``, ``ready``, ``failed`` or ``closed``.
        error: why the model failed, if it did.
        waiting: images that wait for the network, the one that is being computed included.
        images: images computed since the start.
        remembered: answers given from memory since the start.
        seconds: time the network has computed, in seconds.
        failures: images on which the network failed.
        admitted: tasks in requests under way.
    """

    state: State = "loading"
    error: SpicaError | None = None
    waiting: int = 0
    images: int = 0
    remembered: int = 0
    seconds: float = 0.0
    failures: int = 0
    admitted: int = 0


class Engine:
    """One running model behind a bounded queue.

    Args:
        name: the model's name, for logs.
        load: makes the detector; called once, on the engine's own thread.
        warm: run on the detector before the model counts as ready, unless somebody waits for it already: their image
            does the same.
        queue_size: at most so many tasks are admitted at once (:meth:`places`).
        memory_bytes: bound of the memory of raw detections.
        decoded_bytes: bound of the pixels that wait, in each priority: an image that a person has opened does not wait
            for room behind a job's.
        abandon: called on closing, so that ``load`` can give up early.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Detector],
        *,
        queue_size: int,
        memory_bytes: int,
        decoded_bytes: int = DECODED_BYTES,
        warm: Callable[[Detector], None] | None = None,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._load = load
        self._warm = warm
        self._queue_size = queue_size
        self._abandon = abandon
        self._cache = DetectionCache(memory_bytes)
        self._budgets = {priority: ByteBudget(decoded_bytes) for priority in Priority}
        self._heap: list[tuple[int, int, _Job]] = []
        self._pending: dict[str, _Job] = {}
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._status = EngineStatus()
        self._thread = threading.Thread(target=self._run, name=f"spica-engine-{name}", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to load the model; returns at once. A second call changes nothing."""
        with self._changed:
            if self._thread.ident is None and self._status.state != "closed":
                self._thread.start()

    def close(self) -> None:
        """Finish the image that is being computed, fail what waits, end the thread. May be called again."""
        with self._changed:
            self._status.state = "closed"
            self._changed.notify_all()
        self._abandon()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()  # whoever closes second waits too: an image is still to be answered
        self._fail_waiting(ModelUnavailableError("the model server is stopping", where=self.name))

    @property
    def status(self) -> EngineStatus:
        """A snapshot of the engine."""
        with self._changed:
            return replace(self._status, error=copy.copy(self._status.error), waiting=len(self._pending))

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the model is loaded.

        Raises:
            SpicaError: why loading failed.
            ModelUnavailableError: closed, or not ready after ``timeout_s`` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._status.state != "loading", timeout_s)
            if self._status.state == "failed" and self._status.error is not None:
                raise copy.copy(self._status.error)
            if self._status.state != "ready":
                raise ModelUnavailableError("the model is not ready", where=self.name, got=self._status.state)

    @contextlib.contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold ``count`` places of the queue, one a task, for as long as the block runs.

        Raises:
            QueueFullError: not that many are free.
        """
        with self._changed:
            # A request alone may be larger than the queue: refusing it for ever would help nobody.
            if self._status.admitted and self._status.admitted + count > self._queue_size:
                raise QueueFullError(
                    f"{self._status.admitted} tasks are being predicted or wait, {count} more exceed the queue "
                    f"of {self._queue_size}",
                    retry_after_s=self._retry_after_s(),
                    hint="try again later, or select fewer tasks at once",
                )
            self._status.admitted += count
        try:
            yield
        finally:
            with self._changed:
                self._status.admitted -= count

    def remembered(self, digest: str) -> ImageDetections | None:
        """Detections of the image of this digest, without running the network."""
        entry = self._cache.get(digest)
        if entry is not None:
            with self._changed:
                self._status.remembered += 1
        return entry

    def submit_decoded(self, decode: Callable[[], Image], nbytes: int, priority: Priority) -> Future[ImageDetections]:
        """Wait until there is room for an image's pixels, decode it, and ask for its detections.

        Args:
            decode: makes the image; what it raises is raised here.
            nbytes: that its pixels take.
            priority: of the question.
        """
        budget = self._budgets[priority]
        budget.take(nbytes)
        try:
            future = self.submit(decode(), priority)
        except BaseException:
            budget.give_back(nbytes)
            raise
        future.add_done_callback(lambda _: budget.give_back(nbytes))
        return future

    def submit(self, image: Image, priority: Priority) -> Future[ImageDetections]:
        """Ask for the detections of an image; one that is remembered or under way is not computed again.

        The future fails with a :class:`SpicaError` when the model could not be loaded or broke on this image. It may be
        cancelled: an image that nobody waits for any more is not computed.
        """
        future: Future[ImageDetections] = Future()
        entry = self.remembered(image.digest)
        if entry is not None:
            future.set_result(entry)
            return future
        with self._changed:
            if self._status.state in ("failed", "closed"):
                error = copy.copy(self._status.error) or ModelUnavailableError("the model is closed", where=self.name)
                future.set_exception(error)
                return future
            job = self._pending.get(image.digest)
            if job is None:
                job = self._pending[image.digest] = _Job(image, priority)
                self._push(job, priority)
            elif priority < job.priority:  # somebody more urgent wants the same image
                job.priority = priority
                self._push(job, priority)
            job.waiting.append(future)
            return future

    def _push(self, job: _Job, priority: Priority) -> None:
        heapq.heappush(self._heap, (priority, next(self._order), job))
        self._changed.notify_all()

    def _retry_after_s(self) -> int:
        per_image = self._status.seconds / self._status.images if self._status.images else 1.0
        return max(1, min(600, round(per_image * self._status.admitted)))

    def _run(self) -> None:
        try:
            detector = self._load()
            if self._warm is not None and not self._pending:
                self._warm(detector)
        except Exception as error:  # noqa: BLE001 - a model that can't be loaded must be reported, whatever it raised
            self._fail_loading(error)
            return
        with self._changed:
            if self._status.state == "loading":
                self._status.state = "ready"
            self._changed.notify_all()
        logger.info("model %s is ready", self.name)
        while (job := self._next()) is not None:
            self._compute(detector, job)

    def _next(self) -> _Job | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._heap or self._status.state == "closed")
                if self._status.state == "closed":
                    return None
                _, _, job = heapq.heappop(self._heap)
                if job.image is None:  # a job that was moved forward stands in the heap twice
                    continue
                if not all(future.cancelled() for future in job.waiting):
                    return job
                del self._pending[job.image.digest]
                job.image = None

    def _compute(self, detector: Detector, job: _Job) -> None:
        image, job.image = job.image, None
        if image is None:
            return
        outcome: ImageDetections | SpicaError
        started = time.perf_counter()
        try:
            (detections,) = detector.detect([image.pixels])
            outcome = ImageDetections(detections, image.width, image.height)
            self._cache.put(image.digest, outcome)
        except SpicaError as error:
            outcome = copy.copy(error)  # its frames hold the image
        except Exception as error:
            logger.exception("the network failed on an image of %d x %d", image.width, image.height)
            outcome = ModelUnavailableError(
                "the network failed on this image",
                where=f"{image.width} x {image.height} pixels",
                got=type(error).__name__,
                hint="see the server's log",
            )
        with self._changed:
            if isinstance(outcome, SpicaError):
                self._status.failures += 1
            else:
                self._status.images += 1
                self._status.seconds += time.perf_counter() - started
            self._pending.pop(image.digest, None)  # nobody joins the waiting from here on
        del image  # before those who wait decode their next
        job.settle(outcome)

    def _fail_loading(self, error: Exception) -> None:
        if isinstance(error, SpicaError):
            reason: SpicaError = error
            logger.error("model %s could not be loaded: %s", self.name, error.summary)
        else:
            logger.exception("model %s could not be loaded", self.name)
            reason = ModelUnavailableError(
                "the model could not be loaded", where=self.name, got=repr(error), hint="see the server's log"
            )
        with self._changed:
            self._status.error = reason
            if self._status.state == "loading":
                self._status.state = "failed"
            self._changed.notify_all()
        self._fail_waiting(reason)

    def _fail_waiting(self, error: SpicaError) -> None:
        with self._changed:
            waiting = list(self._pending.values())
            self._pending.clear()
            self._heap.clear()
        for job in waiting:
            job.image = None
            job.settle(error)
