"""How far a job is: counted in one place, shown anywhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spica.errors import SpicaError

KEPT = 50
"""So many of the last failures are held in memory; all of them go to the job's file."""

_WINDOW_S = 30.0
"""Speed is that of the last half minute, so that it follows when people use the model at the same time."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot of a job.

    Attributes:
        total: tasks that were to be predicted when the job began, tasks added since included.
        stored: predictions that Label Studio has confirmed.
        boxes: boxes in them.
        failed: tasks without a prediction.
        failures: the last of them, with the reason, at most :data:`KEPT`.
        gone: tasks that were deleted while the job ran.
        answered: tasks that the model is done with, stored or not yet.
        images_per_s: tasks answered a second, over the last half minute; 0 before the first.
        seconds: since the job began, and until it ended.
        counted: predictions of the version that Label Studio counts at the end; None before.
        note: what the job is waiting for, if anything.
    """

    total: int
    stored: int = 0
    boxes: int = 0
    failed: int = 0
    failures: list[tuple[int, SpicaError]] = field(default_factory=list)
    gone: int = 0
    answered: int = 0
    images_per_s: float = 0.0
    seconds: float = 0.0
    counted: int | None = None
    note: str | None = None

    @property
    def done(self) -> int:
        """Tasks that are over, one way or the other."""
        return self.stored + self.failed + self.gone

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present speed; None when that can't be said."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.answered) / self.images_per_s if self.images_per_s > 0 else None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "total": self.total,
            "done": self.done,
            "stored": self.stored,
            "failed": self.failed,
            "gone": self.gone,
            "boxes": self.boxes,
            "images_per_s": round(self.images_per_s, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "seconds": round(self.seconds, 1),
            "counted": self.counted,
            "note": self.note,
            "failures": [failure_json(task, error) for task, error in self.failures],
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Progress:
        """What another process has told by :meth:`as_json`."""
        known = {name: body[name] for name in ("total", "stored", "failed", "gone", "boxes", "images_per_s", "seconds")}
        failures = [(int(each["task"]), SpicaError(str(each["reason"]))) for each in body.get("failures", [])]
        answered = int(known["stored"]) + int(known["failed"]) + int(known["gone"])
        return cls(
            **known,
            answered=answered,
            counted=body.get("counted"),
            note=body.get("note"),
            failures=failures,
        )


def failure_json(task: int, error: SpicaError) -> dict[str, Any]:
    """One failed task, as it stands in files and answers."""
    return {"task": task, "code": error.code, "reason": error.summary}


class Tally:
    """The counters behind :class:`Progress`. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("total", "stored", "boxes", "failed", "gone", "answered"), 0)
        self._failures: deque[tuple[int, SpicaError]] = deque(maxlen=KEPT)
        self._counted: int | None = None
        self._note: str | None = None
        self._samples: deque[tuple[float, int]] = deque([(self._began, 0)])

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

    def count(self, counted: int) -> None:
        """Note what Label Studio counts at the end."""
        with self._lock:
            self._counted = counted

    def end(self) -> None:
        """Stop the clock: speed and duration stay what they were."""
        with self._lock:
            self._ended = self._clock()

    def note(self, text: str | None) -> None:
        """Say what the job is waiting for; None when it goes on."""
        with self._lock:
            self._note = text

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
            elapsed = max(now - since, 1e-6)
            return Progress(
                **self._counts,
                failures=list(self._failures),
                images_per_s=(self._counts["answered"] - before) / elapsed,
                seconds=now - self._began,
                counted=self._counted,
                note=self._note,
            )
