"""What Label Studio's events mean: which projects to look at, when, and whether a person has asked for a training.

Events only say that it is worth looking; what is new is counted in Label Studio afterwards. So a lost event loses
nothing, and a doubled one does nothing twice.

``START_TRAINING`` comes from the button *Start Training* and from the switch *Start model training on annotation
submission*, with which Label Studio sends it while it stores an annotation (``tasks/models.py``,
``update_ml_backend``); its body does not say from which. It is the switch's if the switch is on and either an event
about an annotation comes in the same burst, or the project has other annotations than at its last event (whose webhook
does not arrive); else it is the button's.

It comes through Label Studio's client for models, which sends no headers of ours, so whoever reaches the server can
send it too. But each says when its project was created, to the microsecond, and that is known only to who may open the
project: whoever acts on a trigger compares it with Label Studio first. At most :data:`_WAITING` projects wait for that,
each for a second, so forged ones cost Label Studio little.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from spica.labelstudio.protocol import WebhookRequest
from spica.project import ProjectKey

QUIET_S: Final = 3.0
"""A burst of events is over after this long without one."""

LONGEST_S: Final = 30.0
"""A burst that does not end is looked into after this long."""

START: Final = "START_TRAINING"
ANNOTATIONS: Final = frozenset(
    {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"}
)
_BUTTON_S = 1.0
"""Even a sure button waits this long, so that a forged one makes Label Studio be asked once a second at most."""
_WAITING = 20
"""START_TRAINING may wait of this many projects."""
_PROJECTS = 1000
_CREATED = 1000


@dataclass(frozen=True, slots=True)
class TrainingTrigger:
    """A project that is worth looking at.

    Attributes:
        project: which one.
        button: whether a person has pressed Start Training, if Label Studio has sent it.
        annotations: whether Label Studio has sent events about any.
        created: when the project was created, as each START_TRAINING says.
    """

    project: ProjectKey
    button: bool
    annotations: bool = field(default=False, compare=False)
    created: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(slots=True)
class _Burst:
    """Events of a project that belong together."""

    first: float
    last: float
    annotations: bool = False
    switch_off: bool = False
    unchanged: bool = False
    created: set[str] = field(default_factory=set)


class Triggers:
    """Collects events. Thread-safe; nothing here waits.

    Args:
        quiet_s: see :data:`QUIET_S`.
        longest_s: see :data:`LONGEST_S`.
        clock: seconds that never go back.
    """

    def __init__(
        self, *, quiet_s: float = QUIET_S, longest_s: float = LONGEST_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet_s = quiet_s
        self._longest_s = longest_s
        self._clock = clock
        self._bursts: dict[ProjectKey, _Burst] = {}
        self._totals: OrderedDict[ProjectKey, int] = OrderedDict()
        self._lock = threading.Lock()

    def hear(self, event: WebhookRequest) -> Literal["noted", "ignored"]:
        """Take note of an event."""
        project = event.project_key
        if project is None:
            return "ignored"
        with self._lock:
            changed = self._has_changed(project, event.project or {})
            if event.action != START and event.action not in ANNOTATIONS:
                return "ignored"
            if event.action == START and project not in self._bursts and len(self._bursts) >= _WAITING:
                return "ignored"
            now = self._clock()
            burst = self._bursts.setdefault(project, _Burst(now, now))
            burst.last = now
            if event.action in ANNOTATIONS:
                burst.annotations = True
            elif len(burst.created) < _CREATED:
                every = (event.project or {}).get("min_annotations_to_start_training")
                burst.switch_off |= not (isinstance(every, int) and every > 0)
                burst.unchanged |= not changed
                burst.created.add(str((event.project or {}).get("created_at")))
            return "noted"

    def next(self) -> TrainingTrigger | None:
        """A project whose burst of events is over, which is forgotten with it; None while there is none."""
        with self._lock:
            now = self._clock()
            project = next((key for key, burst in self._bursts.items() if self._due_at(burst) <= now), None)
            if project is None:
                return None
            burst = self._bursts.pop(project)
        button = burst.switch_off or (burst.unchanged and not burst.annotations)
        return TrainingTrigger(project, button, burst.annotations, frozenset(burst.created))

    def wait_s(self) -> float | None:
        """Seconds until :meth:`next` has something; None while nothing was heard."""
        with self._lock:
            now = self._clock()
            return min((max(0.0, self._due_at(burst) - now) for burst in self._bursts.values()), default=None)

    def forget(self, number: int) -> None:
        """Drop what was heard of the projects of this number."""
        with self._lock:
            self._bursts = {key: burst for key, burst in self._bursts.items() if key.number != number}

    def _due_at(self, burst: _Burst) -> float:
        if burst.switch_off:
            return burst.first + min(_BUTTON_S, self._quiet_s)
        return min(burst.last + self._quiet_s, burst.first + self._longest_s)

    def _has_changed(self, project: ProjectKey, body: Mapping[str, Any]) -> bool:
        """Whether a project has other annotations than at its event before, as far as events say."""
        total = _total(body)
        if total is None:
            return False
        before = self._totals.pop(project, total)
        self._totals[project] = total
        if len(self._totals) > _PROJECTS:
            self._totals.popitem(last=False)
        return before != total


def _total(project: Mapping[str, Any]) -> int | None:
    """All annotations of a project; None if its body does not say."""
    counts = [project.get(name) for name in ("total_annotations_number", "skipped_annotations_number")]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if len(known) == len(counts) else None
