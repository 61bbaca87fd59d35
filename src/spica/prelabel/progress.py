"""How far a job is, and which tasks failed: counted in one place, shown anywhere."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from spica.errors import SpicaError, UsageError
from spica.retry import LIMIT_S, retrying

logger = logging.getLogger(__name__)

KEPT = 50  # of the last failures in memory; all of them go to the job's file
_WINDOW_S = 30.0  # speed is measured over this time, so that it follows when people use the model meanwhile

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot of a job."""

    total: int  # tasks to predict, those added since the job began included
    stored: int = 0  # predictions that Label Studio has confirmed
    boxes: int = 0  # in them
    failed: int = 0  # tasks without a prediction
    failures: list[tuple[int, SpicaError]] = field(default_factory=list)  # the last of them, with the reason
    gone: int = 0  # tasks that were deleted while the job ran
    answered: int = 0  # tasks that the model is done with, stored or not yet
    images_per_s: float = 0.0  # tasks answered, over the last half minute; 0 before the first
    seconds: float = 0.0  # since the job began, and until it ended
    counted: int | None = None  # predictions of the version that Label Studio counts at the end; None before
    note: str | None = None  # what the job is waiting for, if anything

    @property
    def done(self) -> int:
        """Tasks that are over: stored, failed or deleted."""
        return self.stored + self.failed + self.gone

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present speed; None while there is no speed."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.answered) / self.images_per_s if self.images_per_s > 0 else None

    def as_json(self) -> dict[str, Any]:
        """For programs: the attributes, ``done`` and ``eta_s``; each failure as :func:`failure_json`."""
        body = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return body | {
            "done": self.done,
            "images_per_s": round(self.images_per_s, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "seconds": round(self.seconds, 1),
            "failures": [failure_json(task, error) for task, error in self.failures],
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Progress:
        """What another process wrote with :meth:`as_json`; what its version did not write yet has its default."""
        known = {entry.name: body[entry.name] for entry in fields(cls) if entry.name in body}
        known["failures"] = [(int(entry["task"]), SpicaError(str(entry["reason"]))) for entry in body["failures"]]
        return cls(**known)


def failure_json(task: int, error: SpicaError) -> dict[str, Any]:
    """One failed task, as it stands in files and answers."""
    return {"task": task, "code": error.code, "reason": error.summary}


class JobCounter:
    """The counters behind :class:`Progress`. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("total", "stored", "boxes", "failed", "gone", "answered"), 0)
        self._failures: deque[tuple[int, SpicaError]] = deque(maxlen=KEPT)
        self._samples: deque[tuple[float, int]] = deque([(self._began, 0)])
        self.counted: int | None = None
        self.note: str | None = None

    def add(self, **counts: int) -> None:
        """Count something up, by the names of :class:`Progress`."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
            if counts.get("answered"):
                self._sample()

    def fail(self, task: int, error: SpicaError) -> None:
        """Count a failed task."""
        with self._lock:
            self._counts["failed"] += 1
            self._failures.append((task, error))

    def expect(self, total: int) -> None:
        """Set how many tasks there are to do in all."""
        with self._lock:
            self._counts["total"] = total

    def end(self) -> None:
        """Stop the clock: speed and duration stay what they were."""
        self._ended = self._clock()

    def _sample(self) -> None:
        now = self._clock()
        if now - self._samples[-1][0] >= _WINDOW_S / 60 or len(self._samples) == 1:
            self._samples.append((now, self._counts["answered"]))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()

    @property
    def progress(self) -> Progress:
        """A snapshot."""
        with self._lock:
            now = self._clock() if self._ended is None else self._ended
            since, before = self._samples[0]
            return Progress(
                **self._counts,
                failures=list(self._failures),
                images_per_s=(self._counts["answered"] - before) / max(now - since, 1e-6),
                seconds=now - self._began,
                counted=self.counted,
                note=self.note,
            )


class Patience:
    """Calls that are repeated while Label Studio is away, with a note in the job's progress. Thread-safe."""

    def __init__(self, counter: JobCounter, stop: threading.Event, limit_s: float = LIMIT_S) -> None:
        self._counter = counter  # shows what is waited for
        self._stop = stop  # ends the waiting
        self._limit_s = limit_s  # in one go; 0 gives up at once

    def __call__(self, ask: Callable[[], _T]) -> _T:
        """What ``ask`` answers in the end. For requests that may be repeated.

        Raises:
            LabelStudioError: what does not pass, or has lasted too long.
        """
        waited = False

        def note(error: BaseException, seconds: float) -> None:
            nonlocal waited
            waited = True
            what = error.what if isinstance(error, SpicaError) else str(error)
            self._counter.note = f"{what}; trying again since {seconds:.0f} s"

        try:
            return retrying(limit_s=self._limit_s, stop=self._stop, on_wait=note)(ask)
        finally:
            if waited:
                self._counter.note = None


class FailureFile:
    """Failed tasks with their reasons, one JSON object a line, on disk at once; what was there is replaced.

    Raises:
        UsageError: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.trouble: str | None = None  # why it is not complete, as on a full disk; nothing else stops then
        try:
            path.write_text("", "utf-8")
        except OSError as error:
            raise UsageError(
                "the report can't be written",
                where=str(path),
                got=error.strerror or type(error).__name__,
                hint="give another file; its folder must exist",
            ) from None

    def write(self, task: int, error: SpicaError) -> None:
        """Add a failed task."""
        self.write_line(json.dumps(failure_json(task, error), ensure_ascii=False))

    def write_line(self, line: str) -> None:
        """Add a line as it is."""
        if self.trouble is not None:
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
            self.lines += 1
        except OSError as failure:
            self.trouble = f"the report in {self.path} is not complete: {failure.strerror or type(failure).__name__}"
            logger.warning("%s", self.trouble)
