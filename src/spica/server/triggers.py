"""What Label Studio's events mean: which projects to look at, when, and whether a person has asked for a training.

Events only say that it is worth looking; what is new is counted in Label Studio afterwards. So a lost event loses
nothing, and a doubled one does nothing twice.

``START_TRAINING`` comes from two places, and its body does not say from which: from the button *Start Training*, and
from the switch *Start model training on annotation submission*, with which Label Studio sends it while it stores every
N-th annotation (``tasks/models.py``, ``update_ml_backend``; the form sets N to 1). They are told apart so:

1. The switch is off (N = 0), or N does not divide the number of annotations: it is the button, at once.
2. An event about an annotation comes in the same burst, as Label Studio sends right afterwards: it is the switch.
3. There are other annotations than at the last event of this project: it is the switch (whose webhook does not arrive).
4. Otherwise it is the button.

It comes through Label Studio's client for models, which sends no headers of ours, so whoever reaches the server can
send it too. But each tells when its project was created, to the microsecond, and that is known only to who may open
the project: whoever acts on a look compares it with Label Studio first. At most :data:`_WAITING` projects wait for
that, each for a second, so forged ones cost Label Studio little.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spica.labelstudio.protocol import WebhookRequest
from spica.project import ProjectKey

QUIET_S = 3.0
"""A burst of events is over after so long without one."""

LONGEST_S = 30.0
"""A burst that does not end is looked into after so long."""

_BUTTON_S = 1.0
"""Even a sure button waits so long, so that a forged one makes Label Studio be asked once a second at most."""

_WAITING = 20
"""Of so many projects START_TRAINING may wait."""

START = "START_TRAINING"
SUBMISSIONS = frozenset({"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"})
DELETIONS = frozenset({"ANNOTATIONS_DELETED"})
_SEEN = 2000
_PROJECTS = 1000

Heard = Literal["noted", "doubled", "ignored"]


@dataclass(frozen=True, slots=True)
class Look:
    """A project that is worth looking at.

    Attributes:
        project: which one.
        asked: whether a person has pressed Start Training, if Label Studio has sent it.
        submissions: whether Label Studio has told of any.
        created: when the project was created, as each START_TRAINING says.
    """

    project: ProjectKey
    asked: bool
    submissions: bool = field(default=False, compare=False)
    created: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(slots=True)
class _Burst:
    """Events of a project that belong together."""

    first: float
    last: float
    submissions: bool = False
    starts: list[_Start] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Start:
    """One START_TRAINING.

    Attributes:
        every: N of the switch, 0 for off.
        total: annotations of the project, cancelled ones too; None if the event does not say.
        grown: whether there were others at the event before.
        created: when the project was created, as it says.
    """

    every: int
    total: int | None
    grown: bool
    created: str

    @property
    def is_button_for_sure(self) -> bool:
        """Whether the switch can't have sent it."""
        return self.every == 0 or (self.total is not None and self.total % self.every != 0)


class Triggers:
    """Collects events. Thread-safe; nothing here waits.

    Args:
        quiet_s: see :data:`QUIET_S`.
        longest_s: see :data:`LONGEST_S`.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        quiet_s: float = QUIET_S,
        longest_s: float = LONGEST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet_s = quiet_s
        self._longest_s = longest_s
        self._clock = clock
        self._bursts: dict[ProjectKey, _Burst] = {}
        self._totals: OrderedDict[ProjectKey, int] = OrderedDict()
        self._seen: OrderedDict[tuple[Any, ...], None] = OrderedDict()
        self._lock = threading.Lock()

    def hear(self, event: WebhookRequest) -> Heard:
        """Take note of an event."""
        project = event.project_key
        if project is None or (event.action != START and event.action not in SUBMISSIONS | DELETIONS):
            with self._lock:
                self._remember_total(project, _total(event.project))
            return "ignored"
        with self._lock:
            if self._is_doubled(event):
                return "doubled"
            total = _total(event.project)
            before = self._totals.get(project)
            self._remember_total(project, total)
            now = self._clock()
            if event.action == START and project not in self._bursts and len(self._bursts) >= _WAITING:
                return "ignored"
            burst = self._bursts.setdefault(project, _Burst(now, now))
            burst.last = now
            if event.action == START:
                grown = before is not None and total is not None and before != total
                created = str((event.project or {}).get("created_at"))
                burst.starts.append(_Start(_every(event.project), total, grown, created))
            else:
                burst.submissions = True
            return "noted"

    def due(self) -> list[Look]:
        """Projects whose burst of events is over, each once."""
        with self._lock:
            now = self._clock()
            over = {project: burst for project, burst in self._bursts.items() if self._due_at(burst) <= now}
            for project in over:
                del self._bursts[project]
        return [
            Look(project, _is_asked(burst), burst.submissions, frozenset(start.created for start in burst.starts))
            for project, burst in over.items()
        ]

    def wait_s(self) -> float | None:
        """Seconds until :meth:`due` has something; None while nothing was heard."""
        with self._lock:
            now = self._clock()
            return min((max(0.0, self._due_at(burst) - now) for burst in self._bursts.values()), default=None)

    def _due_at(self, burst: _Burst) -> float:
        if any(start.is_button_for_sure for start in burst.starts):
            return burst.first + min(_BUTTON_S, self._quiet_s)
        return min(burst.last + self._quiet_s, burst.first + self._longest_s)

    def _remember_total(self, project: ProjectKey | None, total: int | None) -> None:
        if project is None or total is None:
            return
        self._totals[project] = total
        self._totals.move_to_end(project)
        while len(self._totals) > _PROJECTS:
            self._totals.popitem(last=False)

    def _is_doubled(self, event: WebhookRequest) -> bool:
        """Whether the same thing was told before; START_TRAINING carries nothing to tell that by, bursts do it."""
        key = _key(event)
        if key is None:
            return False
        if key in self._seen:
            return True
        self._seen[key] = None
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return False


def _is_asked(burst: _Burst) -> bool:
    return any(start.is_button_for_sure or not (burst.submissions or start.grown) for start in burst.starts)


def _key(event: WebhookRequest) -> tuple[Any, ...] | None:
    told = event.annotation if event.annotation is not None else event.annotations
    items = told if isinstance(told, list) else [told]
    marks = [(each.get("id"), each.get("updated_at")) for each in items if isinstance(each, Mapping)]
    known = [(str(number), str(when)) for number, when in marks if number is not None]
    return (event.action, event.project_key, *sorted(known)) if known else None


def _total(project: Mapping[str, Any] | None) -> int | None:
    """All annotations of a project, as Label Studio counts them for every N-th."""
    counts = [(project or {}).get(name) for name in ("total_annotations_number", "skipped_annotations_number")]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if len(known) == len(counts) else None


def _every(project: Mapping[str, Any] | None) -> int:
    every = (project or {}).get("min_annotations_to_start_training")
    return every if isinstance(every, int) and every > 0 else 0
