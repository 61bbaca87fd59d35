"""The models that are served: one for each version in use, and for each project the version that is in front of people.

A project is answered by the weights that the server was started with, until a version of its own is active (a file,
see :mod:`spica.models.active`). The file is looked at once a second, so it does not matter who has changed it. A new
version is loaded and warmed beside the old one, which goes on answering; then the two are exchanged at one stroke. A
version that can't be loaded is never exchanged for one that works. Nor is one that works dropped because nobody can
tell for a while what is wanted: the folder may be a shared one, and away for a moment.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from spica.errors import ModelUnavailableError, SpicaError, StorageError
from spica.inference import EngineStatus
from spica.models.active import Resolution
from spica.predictor import Predictor
from spica.project import ProjectKey

logger = logging.getLogger(__name__)

LIMIT = 2
"""So many versions stay loaded besides the default one, though nobody is answered by them: going back is quick then."""

SHOWN = 8
"""Of the projects with versions of their own, so many of the last that asked are kept ready; others load when asked."""

_EVERY_S = 1.0
_AGAIN_S = 60.0
"""A version that could not be loaded is tried again after so long: it may have been on its way to a shared folder."""

_GONE_S = 60.0
"""A record of what is active that has been away for so long, while its folder is there, has been removed on purpose."""

PROJECTS = 1000
"""So many projects without versions of their own are remembered."""

Resolve = Callable[[ProjectKey], Resolution]
"""What a project is to be answered with."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a project is answered with, for people.

    Attributes:
        project: which one.
        version: id of the version that answers.
        why: why this one.
        wanted: id of the version that is to answer but does not yet, None if there is none.
        problem: why the wanted one can't answer, or can't be told; None if nothing is known against it.
    """

    project: ProjectKey
    version: str
    why: str
    wanted: str | None = None
    problem: SpicaError | None = None


@dataclass(eq=False, slots=True)
class _Model:
    """A loaded version, or one that is being loaded, and how many requests use it."""

    version: str
    predictor: Predictor
    users: int = 0


@dataclass(eq=False, slots=True)
class _Slot:
    """A project: what answers, and what is to."""

    current: _Model
    why: str
    wanted: str | None = None
    problem: SpicaError | None = None
    tried: dict[str, float] = field(default_factory=dict)
    absent_since: float | None = None


class ModelPool:
    """Thread-safe; nothing that a request calls waits for a model, a network or a conversion.

    Args:
        default: the model that the server was started with; its engine is closed by whoever opened it.
        base_id: id of its version; the default model's own by default.
        resolve: a project's active version; None where nobody ever activates one.
        load: makes the predictor of a version, its engine started; raises where the version is damaged.
        limit: so many versions stay loaded for nobody.
        shown: so many projects with versions of their own are kept ready.
        every_s: seconds between two looks.
        clock: seconds that never go back.

    Attributes:
        past: images, answers from memory, failures and seconds of models that are closed.
    """

    def __init__(
        self,
        default: Predictor,
        *,
        base_id: str | None = None,
        resolve: Resolve | None = None,
        load: Callable[[str], Predictor] | None = None,
        limit: int = LIMIT,
        shown: int = SHOWN,
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = _Model(base_id or default.model_id, default)
        self._resolve = resolve
        self._load = load
        self._limit = limit
        self._most_shown = shown
        self.past = (0, 0, 0, 0.0)
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._slots: OrderedDict[ProjectKey, _Slot] = OrderedDict()
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._listeners: list[Callable[[ProjectKey], None]] = []
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def default(self) -> Predictor:
        """The model that the server was started with."""
        return self._default.predictor

    @property
    def base_id(self) -> str:
        """Id of its version."""
        return self._default.version

    def start(self) -> None:
        """Begin to look at the active versions; twice is once."""
        with self._lock:
            if self._resolve is None or self._thread is not None or self._stop.is_set():
                return
            self._thread = threading.Thread(target=self._watch, name="spica-pool", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop looking, and close all models but the default one. May be called twice."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            models = list(self._models.values())
            self._models.clear()
        for model in models:
            model.predictor.engine.close()

    def on_exchange(self, listener: Callable[[ProjectKey], None]) -> None:
        """Call ``listener`` with a project after another version has begun to answer it."""
        self._listeners.append(listener)

    # --- what requests call -----------------------------------------------------------------------------------------

    def predictor(self, project: ProjectKey | None) -> Predictor:
        """What answers a project now."""
        with self._lock:
            return self._current(project).predictor

    @contextlib.contextmanager
    def lease(self, project: ProjectKey | None) -> Iterator[Predictor]:
        """What answers a project now, kept from being closed for as long as the block runs."""
        with self._lock:
            model = self._current(project)
            model.users += 1
        try:
            yield model.predictor
        finally:
            with self._lock:
                model.users -= 1

    @property
    def predictors(self) -> list[Predictor]:
        """All that are loaded, the default one first."""
        with self._lock:
            return [self._default.predictor, *(model.predictor for model in self._models.values())]

    @property
    def projects(self) -> set[ProjectKey]:
        """Projects that have been asked about lately."""
        with self._lock:
            return set(self._slots)

    def served(self, project: ProjectKey) -> Served:
        """What a project is answered with, and why."""
        with self._lock:
            slot = self._slots.get(project)
            if slot is None:
                return Served(project, self._default.version, "the weights that the server was started with")
            return Served(project, slot.current.version, slot.why, slot.wanted, slot.problem)

    def _current(self, project: ProjectKey | None) -> _Model:
        if project is None or self._resolve is None:
            return self._default
        slot = self._slots.get(project)
        if slot is None:
            slot = self._slots[project] = self._first(project)
            self._forget_strangers()
        self._slots.move_to_end(project)
        if slot.current.predictor.engine.status.state == "failed":  # it was put in front unloaded, at the start
            return self._default
        return slot.current

    def _first(self, project: ProjectKey) -> _Slot:
        """The slot of a project that was never asked about: there is no older version that could answer meanwhile."""
        slot = _Slot(self._default, "the weights that the server was started with")
        try:
            wanted = self._wanted(project)
            slot.why, slot.problem = wanted.reason, _doubt(wanted)
            if slot.problem is not None:
                logger.warning("project %s begins with %s: %s", project, slot.current.version, slot.problem.summary)
            if wanted.version is not None:
                slot.current = self._model(wanted.version)
        except SpicaError as error:
            logger.error("project %s: its active version can't be served: %s", project, error.summary)
            slot.problem = error
        self._wake.set()  # whether its engine comes up is looked at on the pool's own thread
        return slot

    def _wanted(self, project: ProjectKey) -> Resolution:
        assert self._resolve is not None  # noqa: S101 - callers have looked
        wanted = self._resolve(project)
        return wanted._replace(version=None) if wanted.version == self._default.version else wanted

    def _model(self, version: str) -> _Model:
        """A version's model, made where it is not there; the caller holds the lock."""
        model = self._models.get(version)
        if model is None or model.predictor.engine.status.state in ("failed", "closed"):
            if self._load is None:
                raise ModelUnavailableError("this server can't load versions", where=version)
            model = self._models[version] = _Model(version, self._load(version))
        self._models.move_to_end(version)
        return model

    # --- the look, on a thread of its own ---------------------------------------------------------------------------

    def refresh(self, project: ProjectKey) -> Served:
        """Look at a project's active version now, load it if need be, and exchange. Blocks while a version is loaded.

        Returns:
            What answers it afterwards; see ``problem``.
        """
        with self._lock:
            self._current(project)
        with self._looking:
            self._look(project, patient=False)
        return self.served(project)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            with self._lock:
                projects = list(self._slots)
            for project in projects:  # one may be forgotten meanwhile
                if self._stop.is_set():
                    return
                try:
                    with self._looking:
                        self._look(project, patient=True)
                except Exception:  # the other projects, and the next look, must not suffer
                    logger.exception("project %s: looking at its active version", project)
            self.tidy()
            self._wake.wait(self._every_s)

    def _look(self, project: ProjectKey, *, patient: bool) -> None:
        with self._lock:
            slot = self._slots.get(project)
        if slot is None:
            return
        try:
            wanted = self._wanted(project)
        except SpicaError as error:
            slot.problem = error
            return
        version, why = wanted.version, wanted.reason
        if self._is_kept(project, slot, wanted):
            return
        target = version or self._default.version
        state = slot.current.predictor.engine.status.state
        if slot.current.version == target and state in ("ready", "closed"):
            slot.why, slot.wanted, slot.problem = why, None, None
            return
        if version is None:
            self._exchange(project, slot, self._default, why)
            return
        if patient and slot.problem is not None and self._clock() - slot.tried.get(target, -_AGAIN_S) < _AGAIN_S:
            return
        slot.wanted = target
        model: _Model | None = None
        try:
            with self._lock:
                model = self._model(target)
                model.users += 1
            self._wait_ready(model)
        except SpicaError as error:
            if not self._stop.is_set():
                self._note_failure(project, slot, target, error)
        else:
            self._exchange(project, slot, model, why)
        finally:
            if model is not None:
                with self._lock:
                    model.users -= 1

    def _is_kept(self, project: ProjectKey, slot: _Slot, wanted: Resolution) -> bool:
        """Whether what answers goes on, because it can't be told, or not be believed yet, what is wanted."""
        own = slot.current is not self._default
        problem = wanted.problem if own else _doubt(wanted)
        if problem is not None or not (own and wanted.absent):
            slot.absent_since = None
        else:
            now = self._clock()
            slot.absent_since = now if slot.absent_since is None else slot.absent_since
            if now - slot.absent_since < _GONE_S:
                problem = StorageError(
                    "the record of the active model version is gone",
                    where=f"project {project}",
                    hint="if it stays away for a minute, the server's own weights are served",
                )
        if problem is None:
            return False
        if slot.problem is None or slot.problem.summary != problem.summary:
            logger.warning("project %s stays with %s: %s", project, slot.current.version, problem.summary)
        with self._lock:
            slot.problem = problem
            if not own or slot.current.predictor.engine.status.state in ("failed", "closed"):
                slot.current, slot.why, slot.wanted = self._default, wanted.reason, None
        return True

    def _wait_ready(self, model: _Model) -> None:
        while not self._stop.is_set():
            if model.predictor.engine.status.state != "loading":
                break
            with contextlib.suppress(ModelUnavailableError):
                model.predictor.engine.wait_ready(timeout_s=0.2)
        model.predictor.engine.wait_ready(timeout_s=0)

    def _note_failure(self, project: ProjectKey, slot: _Slot, version: str, error: SpicaError) -> None:
        if slot.problem is None or slot.problem.summary != error.summary:
            logger.error(
                "project %s stays with %s: version %s can't be served: %s",
                project,
                slot.current.version if slot.current.version != version else self._default.version,
                version,
                error.summary,
            )
        slot.tried[version] = self._clock()
        with self._lock:
            if slot.current.version == version:  # it was put in front of people before it was loaded, at the start
                slot.current, slot.why = self._default, "its active version can't be loaded"
            slot.wanted, slot.problem = version, error

    def _exchange(self, project: ProjectKey, slot: _Slot, model: _Model, why: str) -> None:
        with self._lock:
            before = slot.current
            slot.current, slot.why, slot.wanted, slot.problem = model, why, None, None
        if before is model:
            return
        logger.info("project %s is answered by %s instead of %s: %s", project, model.version, before.version, why)
        for listener in self._listeners:
            listener(project)

    def tidy(self) -> None:
        """Close models that nobody uses: failed ones at once, others beyond the limit, the oldest first."""
        with self._lock:
            self._forget_quiet_projects()
            shown = {id(slot.current) for slot in self._slots.values()}
            idle = [each for each in self._models.values() if each.users == 0 and id(each) not in shown]
            broken = [each for each in idle if each.predictor.engine.status.state in ("failed", "closed")]
            sound = [each for each in idle if each not in broken]
            closing = broken + sound[: max(0, len(sound) - self._limit)]
            for model in closing:
                del self._models[model.version]
        for model in closing:
            logger.info("version %s is no longer loaded", model.version)
            model.predictor.engine.close()
            self._count(model.predictor.engine.status)

    def _forget_strangers(self) -> None:
        """Anybody may ask with any number: of projects that the default model answers, the last ones are remembered."""
        if len(self._slots) > PROJECTS:
            strangers = [
                project
                for project, slot in self._slots.items()
                if slot.current is self._default and slot.wanted is None
            ]
            for project in strangers[: max(0, len(strangers) - PROJECTS)]:
                del self._slots[project]

    def _forget_quiet_projects(self) -> None:
        own = [project for project, slot in self._slots.items() if slot.current is not self._default]
        for project in own[: max(0, len(own) - self._most_shown)]:
            if self._slots[project].current.users == 0:
                del self._slots[project]

    def _count(self, status: EngineStatus) -> None:
        images, remembered, failures, seconds = self.past
        self.past = (
            images + status.images,
            remembered + status.remembered,
            failures + status.failures,
            seconds + status.seconds,
        )


def _doubt(wanted: Resolution) -> SpicaError | None:
    """What is wrong where the default model answers; that nothing was ever activated is nothing wrong."""
    return None if wanted.absent else wanted.problem
